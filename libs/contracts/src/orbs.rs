//! The orb registry; owner: `pipelines` (config-language §18, api-v2 §19).

use crate::{ask, event, pipelines::CompileReply, text::Text};
use ids::{OrbId, OrbNamespaceId, OrbVersionId, OrgId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A namespace was taken by an organisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbNamespaceCreated {
    /// The namespace; aggregate kind `orb_namespace`.
    pub namespace: OrbNamespace,
}
event!(OrbNamespaceCreated, "orb.namespace_created", 1);

/// A namespace got another name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbNamespaceRenamed {
    /// Its new name; the old one is free.
    pub name: String,
}
event!(OrbNamespaceRenamed, "orb.namespace_renamed", 1);

/// A namespace is gone, and all its orbs with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbNamespaceDeleted {
    /// Its name.
    pub name: String,
}
event!(OrbNamespaceDeleted, "orb.namespace_deleted", 1);

/// An orb came into being, without a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbCreated {
    /// Its id; aggregate kind `orb`.
    pub orb_id: OrbId,
    /// `namespace/orb`.
    pub name: String,
    /// Whether only its own organisation may use it.
    pub is_private: bool,
}
event!(OrbCreated, "orb.created", 1);

/// A version was published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbPublished {
    /// Which.
    pub version: OrbVersion,
    /// References of its own orbs, frozen: as written → exact.
    pub pins: BTreeMap<String, String>,
}
event!(OrbPublished, "orb.published", 1);

/// An orb is shown in lists, or no longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbListed {
    /// Whether it is.
    pub listed: bool,
}
event!(OrbListed, "orb.listed", 1);

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrbNamespace {
    /// Its id.
    pub id: OrbNamespaceId,
    /// Its name.
    pub name: String,
    /// Whose.
    pub org_id: OrgId,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// An orb with its versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orb {
    /// Its id.
    pub id: OrbId,
    /// `namespace/orb`.
    pub name: String,
    /// Its namespace.
    pub namespace: OrbNamespace,
    /// Whether only its own organisation may use it.
    pub is_private: bool,
    /// Whether lists show it.
    pub listed: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Published versions, highest first, without dev versions; in lists the first alone.
    pub versions: Vec<OrbVersion>,
}

/// A version of an orb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrbVersion {
    /// Its id.
    pub id: OrbVersionId,
    /// `1.2.3` or `dev:first`.
    pub version: String,
    /// SHA-256 (hex) of the source.
    pub digest: String,
    /// When it was published.
    pub created_at: Timestamp,
}

/// Which orb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrbKey {
    /// By id.
    Id(OrbId),
    /// By `namespace/orb`.
    Name(String),
}

/// Which namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceKey {
    /// By id.
    Id(OrbNamespaceId),
    /// By name.
    Name(String),
}

/// Takes a namespace. Refused `exists`, `invalid`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateOrbNamespace {
    /// For whom.
    pub org_id: OrgId,
    /// Name.
    pub name: String,
}
ask!(CreateOrbNamespace, "pipelines", "orb_namespace.create", OrbNamespace);

/// One namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetOrbNamespace {
    /// Which.
    pub namespace: NamespaceKey,
}
ask!(query GetOrbNamespace, "pipelines", "orb_namespace.get", OrbNamespace);

/// Gives a namespace another name. Refused `exists`, `invalid`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenameOrbNamespace {
    /// Which.
    pub id: OrbNamespaceId,
    /// Its new name.
    pub name: String,
}
ask!(RenameOrbNamespace, "pipelines", "orb_namespace.rename", OrbNamespace);

/// Removes a namespace with all its orbs. Pipelines that were compiled with them keep what they compiled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteOrbNamespace {
    /// Which.
    pub id: OrbNamespaceId,
}
ask!(DeleteOrbNamespace, "pipelines", "orb_namespace.delete", ());

/// Makes an orb without a version. Refused `exists`, `invalid`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateOrb {
    /// Its namespace.
    pub namespace: NamespaceKey,
    /// Its name in the namespace.
    pub name: String,
    /// Whether only its own organisation may use it.
    pub is_private: bool,
}
ask!(CreateOrb, "pipelines", "orb.create", Orb);

/// One orb.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetOrb {
    /// Which.
    pub orb: OrbKey,
    /// Organisations whose private orbs are seen as well.
    pub orgs: Vec<OrgId>,
}
ask!(query GetOrb, "pipelines", "orb.get", Orb);

/// Orbs by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListOrbs {
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Only private ones, or only public ones.
    pub private: Option<bool>,
    /// Organisations whose private orbs are seen as well.
    pub orgs: Vec<OrgId>,
    /// Those behind this name.
    pub after: Option<String>,
    /// At most so many, up to 100.
    pub first: u32,
}
ask!(query ListOrbs, "pipelines", "orb.list", OrbPage);

/// Part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrbPage {
    /// By name.
    pub orbs: Vec<Orb>,
    /// How many there are in all.
    pub total: i64,
    /// Whether there are more behind these.
    pub more: bool,
}

/// A version with its source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetOrbVersion {
    /// `namespace/orb@version` in any form; without a version the highest.
    pub reference: String,
    /// Organisations whose private orbs are seen as well.
    pub orgs: Vec<OrgId>,
}
ask!(query GetOrbVersion, "pipelines", "orb.version", OrbSourceView);

/// A version with its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrbSourceView {
    /// The orb.
    pub orb: Orb,
    /// The version.
    pub version: OrbVersion,
    /// Its packed YAML.
    pub source: Text,
}

/// Publishes a version. A published one never changes: the same source again is answered as before, another one is
/// refused `exists`; a dev version may be published again. Refused `invalid` when the source is not an orb or one of
/// its own orbs cannot be found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublishOrb {
    /// Of which orb.
    pub orb: OrbKey,
    /// `1.2.3` or `dev:first`.
    pub version: String,
    /// Packed YAML.
    pub source: Text,
}
ask!(PublishOrb, "pipelines", "orb.publish", OrbVersion);

/// Publishes what a dev version holds. Refused `not_found`, `exists`, `invalid`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromoteOrb {
    /// Of which orb.
    pub orb: OrbKey,
    /// `dev:first`.
    pub from: String,
    /// `1.2.3`.
    pub to: String,
}
ask!(PromoteOrb, "pipelines", "orb.promote", OrbVersion);

/// Shows an orb in lists, or no longer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetOrbListed {
    /// Which.
    pub id: OrbId,
    /// Whether it is shown.
    pub listed: bool,
}
ask!(SetOrbListed, "pipelines", "orb.set_listed", Orb);

/// Checks the source of an orb.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ValidateOrb {
    /// Packed YAML.
    pub source: Text,
    /// Organisations whose private orbs it may import.
    pub orgs: Vec<OrgId>,
}
ask!(ValidateOrb, "pipelines", "orb.validate", CompileReply);
