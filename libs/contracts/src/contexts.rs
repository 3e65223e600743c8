//! Contexts and project variables; owner: `contexts`. Values never ride in events.

use crate::{ask, event};
use ids::{ContextId, OrgId, ProjectId, RestrictionId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// A context came into being.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextCreated {
    /// Its id; aggregate kind `context`.
    pub context_id: ContextId,
    /// Whose.
    pub org_id: OrgId,
    /// Name.
    pub name: String,
}
event!(ContextCreated, "context.created", 1);

/// A context and all its values are gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextDeleted {
    /// Which.
    pub context_id: ContextId,
}
event!(ContextDeleted, "context.deleted", 1);

/// A variable was set (aggregate kind `context`, or `project_variables` with the project's id).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariableSet {
    /// Its name.
    pub name: String,
}
event!(VariableSet, "variable.set", 1);

/// A variable was removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariableRemoved {
    /// Its name.
    pub name: String,
}
event!(VariableRemoved, "variable.removed", 1);

/// A context as others see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextInfo {
    /// Its id.
    pub id: ContextId,
    /// Whose; who asks on a user's behalf checks the user's rights there.
    #[serde(default)]
    pub org_id: Option<OrgId>,
    /// Name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A variable as others see it: never its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariableInfo {
    /// Name.
    pub name: String,
    /// `xxxx` and four hex digits of a keyed fingerprint, as api-v2 shows it.
    pub masked: String,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
    /// How often it was set since it exists.
    #[serde(default)]
    pub version: i64,
    /// Who set it last, if a person did and it is known.
    #[serde(default)]
    pub updated_by: Option<UserId>,
    /// When a job last had it, to the hour.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
}

/// Whose variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// A context's.
    Context(ContextId),
    /// A project's.
    Project(ProjectId),
}

/// A value that rides sealed in a request: base64 of the `secrets` port's ciphertext under the label
/// `request`. Plain values never ride on the bus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetVariable {
    /// Where.
    pub scope: Scope,
    /// Name.
    pub name: String,
    /// Sealed value.
    pub sealed: String,
}
ask!(SetVariable, "contexts", "variable.set", VariableInfo);

/// Removes a variable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveVariable {
    /// Where.
    pub scope: Scope,
    /// Name.
    pub name: String,
}
ask!(RemoveVariable, "contexts", "variable.remove", ());

/// Variables of a scope, by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListVariables {
    /// Where.
    pub scope: Scope,
}
ask!(query ListVariables, "contexts", "variable.list", Vec<VariableInfo>);

/// Makes a context. Refused `exists`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateContext {
    /// Whose.
    pub org_id: OrgId,
    /// Name.
    pub name: String,
}
ask!(CreateContext, "contexts", "context.create", ContextInfo);

/// Contexts of an organisation, by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListContexts {
    /// Whose.
    pub org_id: OrgId,
}
ask!(query ListContexts, "contexts", "context.list", Vec<ContextInfo>);

/// One context.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetContext {
    /// Which.
    pub id: ContextId,
}
ask!(query GetContext, "contexts", "context.get", ContextInfo);

/// Deletes a context.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteContext {
    /// Which.
    pub id: ContextId,
}
ask!(DeleteContext, "contexts", "context.delete", ());

/// Whom a restriction lets use a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestrictionKind {
    /// One of the projects that are named.
    Project,
    /// Pipelines for which every expression holds.
    Expression,
    /// Members of one of the groups that are named.
    Group,
}

impl RestrictionKind {
    /// The word of the API and of the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Expression => "expression",
            Self::Group => "group",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Project, Self::Expression, Self::Group].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A restriction of a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restriction {
    /// Its id.
    pub id: RestrictionId,
    /// Of which context.
    pub context_id: ContextId,
    /// Which kind.
    pub kind: RestrictionKind,
    /// Id of a project or group, or the text of an expression.
    pub value: String,
}

/// A context may be used by fewer from now on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextRestricted {
    /// How.
    pub restriction: Restriction,
}
event!(ContextRestricted, "context.restricted", 1);

/// One restriction is gone; its kind stays restricted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestrictionRemoved {
    /// Of which context.
    pub context_id: ContextId,
    /// Which.
    pub restriction_id: RestrictionId,
}
event!(RestrictionRemoved, "context.restriction_removed", 1);

/// A context is open to the whole organisation again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextUnrestricted {
    /// Which.
    pub context_id: ContextId,
}
event!(ContextUnrestricted, "context.unrestricted", 1);

/// Restricts a context. Refused `invalid`, `not_found`, `exists`, `limit_reached`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddRestriction {
    /// Which context.
    pub context_id: ContextId,
    /// Which kind.
    pub kind: RestrictionKind,
    /// Id of a project or group, or the text of an expression.
    pub value: String,
}
ask!(AddRestriction, "contexts", "restriction.add", Restriction);

/// Restrictions of a context, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListRestrictions {
    /// Which context.
    pub context_id: ContextId,
}
ask!(query ListRestrictions, "contexts", "restriction.list", Vec<Restriction>);

/// Removes a restriction. Without the last one of a kind nobody may use the context, until it is unrestricted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveRestriction {
    /// Of which context.
    pub context_id: ContextId,
    /// Which.
    pub id: RestrictionId,
}
ask!(RemoveRestriction, "contexts", "restriction.remove", ());

/// Removes all restrictions and opens the context to the whole organisation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unrestrict {
    /// Which context.
    pub context_id: ContextId,
}
ask!(Unrestrict, "contexts", "context.unrestrict", ());

/// What an SSH key of a project is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshKeyPurpose {
    /// Fetches the repository; made by the suite (api-v2 §7).
    Checkout,
    /// Whatever the steps do with it after `add_ssh_keys`; given by a person (execution §14.2).
    Additional,
}

impl SshKeyPurpose {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Checkout => "checkout",
            Self::Additional => "additional",
        }
    }
}

/// An SSH key as others see it: never its private half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeyInfo {
    /// What it is for.
    pub purpose: SshKeyPurpose,
    /// `deploy-key` or `user-key` of a checkout key.
    pub kind: String,
    /// The host that an additional key is for; `None`: any.
    pub hostname: Option<String>,
    /// Its public half in OpenSSH's one-line form.
    pub public_key: String,
    /// MD5 of the public half: `aa:bb:…`.
    pub md5: String,
    /// SHA-256 of the public half: `SHA256:…`.
    pub sha256: String,
    /// Whether checkouts use it.
    pub preferred: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Keeps a private key for a project's jobs. Refused `invalid`, `exists`, `limit_reached`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddSshKey {
    /// Whose.
    pub project_id: ProjectId,
    /// The host that it is for; `None`: any.
    pub hostname: Option<String>,
    /// The private key in OpenSSH's format, sealed as [`SetVariable::sealed`] is.
    pub sealed: String,
}
ask!(AddSshKey, "contexts", "ssh_key.add", SshKeyInfo);

/// Makes a pair of keys that a project's checkouts use from then on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeCheckoutKey {
    /// Whose.
    pub project_id: ProjectId,
    /// `deploy-key` or `user-key`.
    pub kind: String,
}
ask!(MakeCheckoutKey, "contexts", "ssh_key.make", SshKeyInfo);

/// Keys of a project for one purpose, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListSshKeys {
    /// Whose.
    pub project_id: ProjectId,
    /// For what.
    pub purpose: SshKeyPurpose,
}
ask!(query ListSshKeys, "contexts", "ssh_key.list", Vec<SshKeyInfo>);

/// Removes a key. Refused `not_found`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveSshKey {
    /// Whose.
    pub project_id: ProjectId,
    /// For what.
    pub purpose: SshKeyPurpose,
    /// MD5 or SHA-256 of the public half.
    pub fingerprint: String,
    /// Only the one for this host.
    pub hostname: Option<String>,
}
ask!(RemoveSshKey, "contexts", "ssh_key.remove", ());

/// A project has one SSH key more (aggregate kind `project_keys`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SshKeyAdded {
    /// For what.
    pub purpose: SshKeyPurpose,
    /// SHA-256 of the public half.
    pub sha256: String,
    /// The host that it is for.
    pub hostname: Option<String>,
}
event!(SshKeyAdded, "ssh_key.added", 1);

/// A project has one SSH key less.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SshKeyRemoved {
    /// For what.
    pub purpose: SshKeyPurpose,
    /// SHA-256 of the public half.
    pub sha256: String,
}
event!(SshKeyRemoved, "ssh_key.removed", 1);

/// The keys that OIDC tokens of jobs are verified with, as a JSON Web Key Set (execution §21).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetJwks {}
ask!(query GetJwks, "contexts", "oidc.jwks", serde_json::Value);
