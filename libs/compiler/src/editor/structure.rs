//! The structures of a configuration: what a map or list at a place is, and what its keys and entries are then.

use crate::builtin::keys_of;
use crate::executors::{AWS_KEYS, BASIC_KEYS, CONTAINER_KEYS, GCP_KEYS, MACHINE_KEYS, MACOS_KEYS};
use crate::groups::GROUP_KEYS;
use crate::invocations::INVOCATION_KEYS;
use crate::params::DECLARATION_KEYS;
use crate::scope::{COMMAND_KEYS, EXECUTOR_KEYS, JOB_KEYS, Kind, ORB_KEYS};
use crate::workflows::WORKFLOW_KEYS;
use std::sync::Arc;

/// An element of the language: of the file itself (`orb` is empty), or of the orb that these aliases lead to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Element {
    pub orb: String,
    pub kind: Kind,
    pub name: Arc<str>,
}

/// What stands at a place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Structure {
    /// The file; of an orb where the flag says so.
    Root,
    /// A map from names to elements.
    Elements(Kind),
    Element(Element),
    Groups,
    Group,
    Orbs,
    Orb,
    /// A map from names to declarations of parameters; of the pipeline or of an element.
    Declarations(Option<Element>),
    Declaration,
    /// A list of steps, and one of them.
    Steps,
    Step,
    /// The map of a step of the language.
    StepOptions(Arc<str>),
    Conditional,
    /// Arguments of a call.
    Arguments(Element),
    /// A name of an executor, or a map with its name and arguments.
    Executor,
    ExecutorArguments(Element),
    Containers,
    Container,
    /// A map whose keys are all of it.
    Keys(&'static [&'static str]),
    Retention,
    Machine,
    Macos,
    Workflows,
    Workflow,
    /// The jobs of a workflow or of a group.
    Invocations,
    Invocation(Option<Element>),
    GroupInvocation,
    Requires,
    Required,
    Filters,
    Refs,
    Matrix(Option<Element>),
    MatrixParameters(Option<Element>),
    Exclusions(Option<Element>),
    Triggers,
    Trigger,
    Schedule,
    /// A condition in any of its forms.
    Condition,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Anything: its texts may refer to names, its keys mean nothing here.
    Free,
}

const TYPES: &[&str] = &["string", "boolean", "integer", "enum", "executor", "steps", "env_var_name"];
const STATUSES: &[&str] = &["success", "failed", "canceled", "unauthorized", "not_run", "terminal"];
const LOGIC: &[&str] = &["and", "or", "not", "equal", "matches"];

impl Structure {
    /// The keys that it may have; those of arguments and names are not among them.
    pub fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Root => crate::TOP_LEVEL,
            Self::Orb => ORB_KEYS,
            Self::Element(Element { kind: Kind::Job, .. }) => JOB_KEYS,
            Self::Element(Element { kind: Kind::Command, .. }) => COMMAND_KEYS,
            Self::Element(Element { kind: Kind::Executor, .. }) => EXECUTOR_KEYS,
            Self::Group => &["jobs"],
            Self::Declaration => DECLARATION_KEYS,
            Self::StepOptions(step) => keys_of(step),
            Self::Conditional => &["condition", "steps"],
            Self::Container => CONTAINER_KEYS,
            Self::Keys(keys) => keys,
            Self::Retention => &["caches"],
            Self::Machine => MACHINE_KEYS,
            Self::Macos => MACOS_KEYS,
            Self::Executor | Self::ExecutorArguments(_) => &["name"],
            Self::Workflow => WORKFLOW_KEYS,
            Self::Invocation(_) => INVOCATION_KEYS,
            Self::GroupInvocation => GROUP_KEYS,
            Self::Filters => &["branches", "tags"],
            Self::Refs => &["only", "ignore"],
            Self::Matrix(_) => &["parameters", "exclude", "alias"],
            Self::Trigger => &["schedule"],
            Self::Schedule => &["cron", "filters"],
            Self::Condition => LOGIC,
            _ => &[],
        }
    }

    /// The words of which its text must be one.
    pub fn words(&self) -> &'static [&'static str] {
        if let Self::Word(words) = self { words } else { &[] }
    }

    /// What is below a key of the language. Names and arguments are not asked for here.
    pub fn below(&self, key: &str) -> Self {
        match (self, key) {
            (Self::Root | Self::Orb, "jobs") => Self::Elements(Kind::Job),
            (Self::Root | Self::Orb, "commands") => Self::Elements(Kind::Command),
            (Self::Root | Self::Orb, "executors") => Self::Elements(Kind::Executor),
            (Self::Root | Self::Orb, "orbs") => Self::Orbs,
            (Self::Root, "parameters") => Self::Declarations(None),
            (Self::Root, "job-groups") => Self::Groups,
            (Self::Root, "workflows") => Self::Workflows,
            (Self::Root, "version") => Self::Word(&["2.1"]),
            (Self::Root, "setup") => Self::Word(&["true", "false"]),
            (Self::Element(own), "parameters") => Self::Declarations(Some(own.clone())),
            (Self::Element(_), "steps") | (Self::Conditional, "steps") => Self::Steps,
            (Self::Element(_), "docker") => Self::Containers,
            (Self::Element(_), "machine") => Self::Machine,
            (Self::Element(_), "macos") => Self::Macos,
            (Self::Element(_), "retention") => Self::Retention,
            (Self::Element(Element { kind: Kind::Job, .. }), "executor") => Self::Executor,
            (Self::Element(Element { kind: Kind::Job, .. }), "type") => {
                Self::Word(&["build", "approval", "no-op", "lock", "unlock"])
            }
            (Self::Group | Self::Workflow, "jobs") => Self::Invocations,
            (Self::Declaration, "type") => Self::Word(TYPES),
            (Self::StepOptions(_), "when") => Self::Word(&["on_success", "on_fail", "always"]),
            (Self::StepOptions(_), "method") => Self::Word(&["full", "blobless", "shallow"]),
            (Self::StepOptions(_), "background") => Self::Word(&["true", "false"]),
            (Self::Conditional, "condition") | (Self::Workflow, "when" | "unless") => Self::Condition,
            (Self::Condition, _) => Self::Condition,
            (Self::Container, "auth") => Self::Keys(BASIC_KEYS),
            (Self::Container, "aws_auth") => Self::Keys(AWS_KEYS),
            (Self::Container, "gcp_auth") => Self::Keys(GCP_KEYS),
            (Self::Workflow, "triggers") => Self::Triggers,
            (Self::Trigger, "schedule") => Self::Schedule,
            (Self::Invocation(_), "type") => Self::Word(&["approval"]),
            (Self::Invocation(_), "pre-steps" | "post-steps") => Self::Steps,
            (Self::Invocation(_) | Self::GroupInvocation, "requires") => Self::Requires,
            (Self::Invocation(_) | Self::GroupInvocation | Self::Schedule, "filters") => Self::Filters,
            (Self::Invocation(job), "matrix") => Self::Matrix(job.clone()),
            (Self::Matrix(job), "parameters") => Self::MatrixParameters(job.clone()),
            (Self::Matrix(job), "exclude") => Self::Exclusions(job.clone()),
            (Self::Filters, "branches" | "tags") => Self::Refs,
            (Self::Requires | Self::Required, _) => Self::Word(STATUSES),
            _ => Self::Free,
        }
    }

    /// What an entry of it is, where it is a list.
    pub fn entry(&self) -> Self {
        match self {
            Self::Steps => Self::Step,
            Self::Containers => Self::Container,
            Self::Requires => Self::Required,
            Self::Triggers => Self::Trigger,
            Self::Exclusions(job) => Self::MatrixParameters(job.clone()),
            Self::Word(words) => Self::Word(words),
            Self::Condition => Self::Condition,
            // `when` and `unless` of a list of steps, and lists in lists.
            Self::Step => Self::Step,
            Self::Invocations => Self::Invocations,
            _ => Self::Free,
        }
    }
}
