//! Grants; owner: `permissions`.

use crate::{ask, event};
use ids::{OrgId, UserId};
use serde::{Deserialize, Serialize};

/// A user has a role in an organisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleGranted {
    /// Who; aggregate kind `grant`, id = the user's.
    pub user_id: UserId,
    /// Where; `None`: everywhere.
    pub org_id: Option<OrgId>,
    /// `admin`, `contributor` or `viewer`.
    pub role: String,
}
event!(RoleGranted, "role.granted", 1);

/// May this user do this? `permission` is a word of `model::permission`, for example `approve`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckPermission {
    /// Who.
    pub user_id: UserId,
    /// What.
    pub permission: String,
    /// Where.
    pub org_id: OrgId,
}
ask!(query CheckPermission, "permissions", "permission.check", bool);
