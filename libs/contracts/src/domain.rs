//! Organisations, users, tokens and projects; owner: `domain`.

use crate::{ask, event};
use ids::{OrgId, ProjectId, TokenId, UserId};
use serde::{Deserialize, Serialize};

/// An organisation came into being.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrgCreated {
    /// Its id; aggregate kind `org`.
    pub org_id: OrgId,
    /// Name in slugs, for example `local`.
    pub name: String,
}
event!(OrgCreated, "org.created", 1);

/// A user came into being. Personal part: `{"login": …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserCreated {
    /// Its id; aggregate kind `user`.
    pub user_id: UserId,
    /// Whether it administers the installation.
    #[serde(default)]
    pub admin: bool,
}
event!(UserCreated, "user.created", 1);

/// A token came into being. The token itself is never in a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// Its id; aggregate kind `token`.
    pub token_id: TokenId,
    /// Whose.
    pub user_id: UserId,
    /// Label.
    pub label: String,
}
event!(TokenCreated, "token.created", 1);

/// A token no longer opens anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRevoked {
    /// Which.
    pub token_id: TokenId,
}
event!(TokenRevoked, "token.revoked", 1);

/// A user registered an SSH key, to enter jobs with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserKeyAdded {
    /// Whose; aggregate kind `user`.
    pub user_id: UserId,
    /// Fingerprint, `SHA256:…`.
    pub sha256: String,
}
event!(UserKeyAdded, "user.key_added", 1);

/// A user's SSH key opens nothing any more, but jobs that were rerun while it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserKeyRemoved {
    /// Whose; aggregate kind `user`.
    pub user_id: UserId,
    /// Fingerprint, `SHA256:…`.
    pub sha256: String,
}
event!(UserKeyRemoved, "user.key_removed", 1);

/// A project came into being.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectCreated {
    /// The project; aggregate kind `project`.
    pub project: Project,
}
event!(ProjectCreated, "project.created", 1);

/// Settings of a project changed. Consumers keep what they decide by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectSettingsChanged {
    /// Which; aggregate kind `project`.
    pub project_id: ProjectId,
    /// What they are now.
    pub settings: ProjectSettings,
}
event!(ProjectSettingsChanged, "project.settings_changed", 1);

/// Settings of a project (`advanced` in the API).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectSettings {
    /// A new pipeline on a branch other than the default one cancels the branch's older workflows (execution §8).
    pub autocancel_builds: bool,
    /// Nobody enters a job of the project by SSH (execution §26).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disable_ssh: bool,
}

/// Settings of a project.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetProjectSettings {
    /// Which.
    pub id: ProjectId,
}
ask!(query GetProjectSettings, "domain", "project.settings", ProjectSettings);

/// Changes settings of a project; what is not named stays. Answer: all of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangeProjectSettings {
    /// Which.
    pub id: ProjectId,
    /// See [`ProjectSettings::autocancel_builds`].
    #[serde(default)]
    pub autocancel_builds: Option<bool>,
    /// See [`ProjectSettings::disable_ssh`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_ssh: Option<bool>,
}
ask!(ChangeProjectSettings, "domain", "project.change_settings", ProjectSettings);

/// A project as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its organisation.
    pub org_id: OrgId,
    /// Name of the organisation.
    pub org: String,
    /// Name of the repository.
    pub name: String,
    /// `git/<org>/<repo>`.
    pub slug: String,
    /// Branch that is never auto-canceled.
    pub default_branch: String,
}

/// An organisation as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Org {
    /// Its id.
    pub id: OrgId,
    /// Its name.
    pub name: String,
}

/// A user as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its login.
    pub login: String,
    /// Whether it administers the installation.
    pub admin: bool,
}

/// A token's public part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its id.
    pub id: TokenId,
    /// Its label.
    pub label: String,
    /// When it was made.
    pub created_at: ids::Timestamp,
}

/// Who holds the token with this SHA-256 (lower-case hex)? Refused `unauthenticated`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyToken {
    /// SHA-256 of the token, hex.
    pub sha256: String,
}
ask!(query VerifyToken, "domain", "token.verify", User);

/// Makes a token for the actor; only its hash is sent. Answer: its public part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateToken {
    /// Label.
    pub label: String,
    /// SHA-256 of the token, hex.
    pub sha256: String,
}
ask!(CreateToken, "domain", "token.create", TokenInfo);

/// Tokens of the actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListTokens {}
ask!(query ListTokens, "domain", "token.list", Vec<TokenInfo>);

/// Revokes a token of the actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevokeToken {
    /// Which.
    pub id: TokenId,
}
ask!(RevokeToken, "domain", "token.revoke", ());

/// An SSH key of a person: its public half, which is all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserKey {
    /// The key in OpenSSH's one-line form, its comment included.
    pub public_key: String,
    /// Fingerprint, `SHA256:…`.
    pub sha256: String,
    /// What the person calls it: the key's comment, unless it was given a name.
    pub label: String,
    /// When it was registered.
    pub created_at: ids::Timestamp,
}

/// The SSH keys of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserKeys {
    /// Whose.
    pub login: String,
    /// In the order in which they were registered.
    pub keys: Vec<UserKey>,
}

/// Registers an SSH key of the actor, with which jobs that they rerun with SSH can be entered (execution §26). Refused
/// `invalid` for what is no public key, or of a kind or size that is not taken; `exists` for one that is registered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddUserKey {
    /// The public half in OpenSSH's one-line form.
    pub public_key: String,
    /// What to call it; `None`: its comment.
    #[serde(default)]
    pub label: Option<String>,
}
ask!(AddUserKey, "domain", "user_key.add", UserKey);

/// SSH keys of the actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListUserKeys {}
ask!(query ListUserKeys, "domain", "user_key.list", UserKeys);

/// Removes an SSH key of the actor. Refused `not_found`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveUserKey {
    /// Fingerprint, `SHA256:…`.
    pub sha256: String,
}
ask!(RemoveUserKey, "domain", "user_key.remove", ());

/// Makes the first administrator (login `admin`), the organisation `local` and the admin's token, once;
/// a repeat replaces the token's hash. Asked by the start-up of `gantry up` only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bootstrap {
    /// SHA-256 of the admin's token, hex.
    pub token_sha256: String,
}
ask!(Bootstrap, "domain", "bootstrap", User);

/// The project with this reference: slug `git/org/repo`, `circleci/<base58>/<base58>`, or UUID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetProject {
    /// As the client wrote it.
    pub reference: String,
}
ask!(query GetProject, "domain", "project.get", Project);

/// The project `git/<org>/<repo>`, made if it does not exist. Refused `not_found` when the organisation
/// does not exist, `invalid` when a name has other characters than `[A-Za-z0-9._-]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnsureProject {
    /// Organisation.
    pub org: String,
    /// Repository.
    pub repo: String,
}
ask!(EnsureProject, "domain", "project.ensure", Project);

/// All projects that the actor may read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListProjects {}
ask!(query ListProjects, "domain", "project.list", Vec<Project>);

/// All organisations of the actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListOrgs {}
ask!(query ListOrgs, "domain", "org.list", Vec<Org>);
