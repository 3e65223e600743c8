//! What the keys of the language mean, in one sentence each (config-language §3 to §19).

use super::structure::Structure;
use crate::scope::Kind;

/// The meaning of a key of this structure.
pub(super) fn meaning(structure: &Structure, key: &str) -> Option<&'static str> {
    let own = match structure {
        Structure::Root | Structure::Orb => root(key),
        Structure::Element(element) if element.kind == Kind::Job => job(key).or_else(|| place(key)),
        Structure::Element(_) => place(key),
        Structure::Container => container(key),
        Structure::Machine | Structure::Macos => machine(key),
        Structure::StepOptions(step) => option(step, key),
        Structure::Step => step(key),
        Structure::Workflow => workflow(key),
        Structure::Invocation(_) | Structure::GroupInvocation => invocation(key),
        _ => None,
    };
    own.or_else(|| other(structure, key))
}

fn root(key: &str) -> Option<&'static str> {
    Some(match key {
        "version" => "The version of the language: `2.1`.",
        "setup" => "`true`: one job of this configuration continues the pipeline with another configuration.",
        "orbs" => {
            "Orbs by the names under which this file uses them: `node: circleci/node@5.1`, or their source itself."
        }
        "parameters" => {
            "Pipeline parameters: whoever triggers a pipeline may give them; `<< pipeline.parameters.name >>`."
        }
        "commands" => "Commands: lists of steps with a name, which jobs call with arguments.",
        "executors" => "Executors: places to run, which jobs name with `executor`.",
        "jobs" => "Jobs by their names. A workflow says which of them run.",
        "job-groups" => "Groups of jobs with their dependencies, which workflows use like one job.",
        "workflows" => "Which jobs run, in which order and for which branches and tags.",
        "description" => "What the orb is for.",
        "display" => "Addresses of the orb's home and of its source.",
        "examples" => "Configurations that show how the orb is used.",
        _ => return None,
    })
}

fn job(key: &str) -> Option<&'static str> {
    Some(match key {
        "type" => {
            "`build` runs steps; `approval` waits for a person; `no-op` does nothing; `lock` and `unlock` hold a serial group."
        }
        "parallelism" => "How many copies of the job run at once; each splits off its part of the tests.",
        "auto_rerun_on_infra_fail" => {
            "How often the workflow is run again from its failed jobs when this one was lost with its machine, up to 5."
        }
        "steps" => "What the job does, in order.",
        "executor" => "Name of the executor on which it runs, or a map with its `name` and arguments.",
        "retention" => "How long what the job stores is kept: `caches: 5d`.",
        "circleci_ip_ranges" => "Whether the job reaches out from known addresses.",
        "plan_name" => "Name of the release plan, for jobs of `type: release`.",
        "key" => "Key of the serial group, for jobs of `type: lock` and `type: unlock`.",
        _ => return None,
    })
}

fn place(key: &str) -> Option<&'static str> {
    Some(match key {
        "description" => "What it is for.",
        "parameters" => {
            "Parameters with their types and defaults; `<< parameters.name >>` stands for the argument."
        }
        "steps" => "What the command does, in order.",
        "docker" => "Containers of one network; steps run in the first.",
        "machine" => "A virtual machine, or the host itself.",
        "macos" => "A machine with macOS and Xcode.",
        "resource_class" => "Size of the machine or container, or `namespace/name` of own agents.",
        "working_directory" => "Where steps run; `~/project` when nothing else is said.",
        "environment" => "Environment variables of all steps.",
        "shell" => "Shell of `run` steps; `/bin/bash -eo pipefail` when nothing else is said.",
        _ => return None,
    })
}

fn container(key: &str) -> Option<&'static str> {
    Some(match key {
        "image" => "Image of the container.",
        "name" => "Host name by which the other containers reach it.",
        "entrypoint" => "Instead of the entrypoint of the image.",
        "command" => "Instead of the command of the image.",
        "user" => "User of its processes.",
        "environment" => "Environment variables of its processes.",
        "auth" => "User name and password for the registry of the image; use `$NAME` of a context.",
        "aws_auth" => "Access to Amazon ECR.",
        "gcp_auth" => "Access to Google Artifact Registry.",
        _ => return None,
    })
}

fn machine(key: &str) -> Option<&'static str> {
    Some(match key {
        "image" => "Image of the virtual machine.",
        "docker_layer_caching" => "Whether layers of images that it builds are kept between jobs.",
        "xcode" => "Version of Xcode.",
        _ => return None,
    })
}

/// The steps of the language.
pub(super) fn step(name: &str) -> Option<&'static str> {
    Some(match name {
        "run" => "Runs a command in a shell.",
        "checkout" => "Checks out the repository at the revision of the pipeline.",
        "setup_remote_docker" => "Gives the job a docker engine of its own.",
        "save_cache" => "Keeps paths under a key, for later jobs.",
        "restore_cache" => "Brings back the newest cache whose key begins with one of these, tried in order.",
        "deploy" => "Runs a command on the first node alone, after all others have succeeded; deprecated.",
        "store_artifacts" => "Keeps files for people to look at.",
        "store_test_results" => {
            "Keeps JUnit files, so that tests are listed and can be split by their times."
        }
        "persist_to_workspace" => "Hands files to the jobs that require this one.",
        "attach_workspace" => "Brings in what required jobs persisted.",
        "add_ssh_keys" => "Adds SSH keys of the project.",
        "install_signing_bundle" => {
            "Has no effect here: certificates of Apple are kept by the hosted service alone."
        }
        "when" => "Steps that are there only where a condition holds, when the configuration is compiled.",
        "unless" => {
            "Steps that are there only where a condition does not hold, when the configuration is compiled."
        }
        "steps" => "A list of steps in place of one, often a parameter of type `steps`.",
        _ => return None,
    })
}

fn option(step: &str, key: &str) -> Option<&'static str> {
    Some(match (step, key) {
        (_, "name") => "Name of the step where it is shown.",
        (_, "when") => "`on_success`, `on_fail` or `always`: in which state of the job the step runs.",
        (_, "command") => "What the shell runs.",
        (_, "description") => "What the step is for.",
        (_, "shell") => "Shell of this step, with its options.",
        (_, "environment") => "Environment variables of this step.",
        (_, "background") => "Whether the job goes on while the step runs.",
        (_, "working_directory") => "Where the step runs.",
        (_, "no_output_timeout") => {
            "The step is ended after so long without output; `10m` when nothing else is said."
        }
        (_, "max_auto_reruns") => "How often a failed step is tried again, from 1 to 5.",
        (_, "auto_rerun_delay") => "How long to wait before it is tried again: `30s`, at most `10m`.",
        ("checkout", "path") => "Where the repository goes; the working directory when nothing else is said.",
        ("checkout", "method") => "`full`, `blobless` or `shallow`: how much of the history is fetched.",
        ("checkout", "depth") => "How many commits, with `method: shallow`.",
        ("setup_remote_docker", "docker_layer_caching") => "Whether layers of images are kept between jobs.",
        ("setup_remote_docker", "version") => "Version of the engine.",
        (_, "key") => {
            "Key of the cache; `{{ checksum \"file\" }}`, `{{ .Branch }}` and others are filled in."
        }
        (_, "keys") => "Keys to look for, each as a beginning, in this order.",
        ("save_cache", "paths") => "Folders and files to keep.",
        ("persist_to_workspace", "paths") => "Files below `root`, as globs.",
        ("persist_to_workspace", "root") => "The folder that `paths` are relative to.",
        ("attach_workspace", "at") => "Where the files go.",
        ("store_artifacts", "path") => "A file or folder.",
        ("store_artifacts", "destination") => "Under which name it is listed.",
        ("store_test_results", "path") => "A file or folder with JUnit files.",
        ("add_ssh_keys", "fingerprints") => "Which keys; all of the project when nothing else is said.",
        _ => return None,
    })
}

fn workflow(key: &str) -> Option<&'static str> {
    Some(match key {
        "jobs" => "Jobs and approvals, with what they require.",
        "when" => "The workflow runs only where this holds.",
        "unless" => "The workflow runs only where this does not hold.",
        "triggers" => "Schedules; the workflow then runs at those times alone.",
        "max_auto_reruns" => "How often a failed workflow is run again from its failed jobs, from 1 to 5.",
        "description" => "What the workflow is for.",
        _ => return None,
    })
}

fn invocation(key: &str) -> Option<&'static str> {
    Some(match key {
        "name" => "Name of the job in this workflow.",
        "requires" => "Jobs that must end first; with success when no other status is named.",
        "context" => "Contexts whose secrets the job is given.",
        "type" => "`approval`: waits until a person approves.",
        "filters" => "Branches and tags for which the job runs, or an expression.",
        "matrix" => "Runs the job once for each combination of arguments.",
        "pre-steps" => "Steps before those of the job.",
        "post-steps" => "Steps after those of the job.",
        "serial-group" => {
            "Key of a lock: of all jobs of the organisation with this key only one runs at a time."
        }
        "override-with" => "A job of an orb that takes the place of this one, if the orb has it.",
        _ => return None,
    })
}

fn other(structure: &Structure, key: &str) -> Option<&'static str> {
    Some(match (structure, key) {
        (Structure::Group, "jobs") => {
            "Jobs of the group, as a workflow lists them; they require each other only."
        }
        (Structure::Declaration, "type") => {
            "`string`, `boolean`, `integer`, `enum`, `executor`, `steps` or `env_var_name`."
        }
        (Structure::Declaration, "default") => {
            "What it is when no argument is given. Without it, an argument must be."
        }
        (Structure::Declaration, "description") => "What it is for.",
        (Structure::Declaration, "enum") => "The values of which it is one.",
        (Structure::Conditional, "condition") => "A logic statement or an expression.",
        (Structure::Conditional, "steps") => "The steps that it decides on.",
        (Structure::Executor | Structure::ExecutorArguments(_), "name") => "Name of the executor.",
        (Structure::Filters, "branches") => "For which branches.",
        (Structure::Filters, "tags") => "For which tags. Without it a job does not run for tags.",
        (Structure::Refs, "only") => "Names or `/patterns/`, one of which must fit whole.",
        (Structure::Refs, "ignore") => "Names or `/patterns/`, none of which may fit whole.",
        (Structure::Matrix(_), "parameters") => "Lists of arguments by the names of parameters.",
        (Structure::Matrix(_), "exclude") => "Combinations that are left out.",
        (Structure::Matrix(_), "alias") => "The name by which all its jobs are required together.",
        (Structure::Trigger, "schedule") => "When the workflow runs.",
        (Structure::Schedule, "cron") => {
            "Five fields in UTC: minute, hour, day of the month, month, day of the week."
        }
        (Structure::Schedule, "filters") => "For which branches.",
        (Structure::Condition, "and") => "All of these hold.",
        (Structure::Condition, "or") => "One of these holds.",
        (Structure::Condition, "not") => "This does not hold.",
        (Structure::Condition, "equal") => "All of these are the same.",
        (Structure::Condition, "matches") => "The `value` fits the `pattern` whole.",
        (Structure::Retention, "caches") => "How long caches are kept, from `1d` to `15d`.",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::editor::structure::Element;
    use crate::steps::BUILT_IN;

    #[test]
    fn nearly_every_key_has_a_meaning() {
        let element = |kind| Structure::Element(Element { orb: String::new(), kind, name: "a".into() });
        let mut structures = vec![
            Structure::Root,
            element(Kind::Job),
            element(Kind::Command),
            element(Kind::Executor),
            Structure::Group,
            Structure::Declaration,
            Structure::Conditional,
            Structure::Container,
            Structure::Workflow,
            Structure::Invocation(None),
            Structure::GroupInvocation,
            Structure::Filters,
            Structure::Refs,
            Structure::Matrix(None),
            Structure::Trigger,
            Structure::Schedule,
            Structure::Condition,
        ];
        structures.extend(BUILT_IN.iter().map(|step| Structure::StepOptions((*step).into())));
        // Accepted without an effect.
        let mute = ["validation", "reusable", "exclusive", "prefer_same_region"];
        for structure in structures {
            for key in structure.keys().iter().filter(|key| !mute.contains(key)) {
                assert!(meaning(&structure, key).is_some(), "{structure:?}: {key}");
            }
        }
        BUILT_IN.iter().for_each(|name| assert!(step(name).is_some(), "{name}"));
    }
}
