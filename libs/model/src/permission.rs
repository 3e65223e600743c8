//! Who may do what: a pure function, deny by default (security §7).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A role in an organisation. The order matters: the highest of several roles wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees everything but secrets.
    Viewer,
    /// Works with pipelines.
    Contributor,
    /// Runs the organisation.
    Admin,
}

impl Role {
    /// All roles, the lowest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Contributor, Self::Admin];

    /// The word in events and requests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Contributor => "contributor",
            Self::Admin => "admin",
        }
    }

    /// The role with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that a role may or may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// See projects, pipelines, logs and artifacts; fetch from the git server.
    Read,
    /// Start pipelines: push, trigger by API.
    Trigger,
    /// Cancel workflows and jobs.
    Cancel,
    /// Decide approvals.
    Approve,
    /// Rerun workflows.
    Rerun,
    /// Change a project's settings, variables and keys.
    WriteProject,
    /// Make contexts and set their variables.
    WriteContext,
    /// Members, roles, settings of the organisation.
    Admin,
}

impl Permission {
    /// All permissions.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Trigger,
        Self::Cancel,
        Self::Approve,
        Self::Rerun,
        Self::WriteProject,
        Self::WriteContext,
        Self::Admin,
    ];

    /// The word in requests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Trigger => "trigger",
            Self::Cancel => "cancel",
            Self::Approve => "approve",
            Self::Rerun => "rerun",
            Self::WriteProject => "write_project",
            Self::WriteContext => "write_context",
            Self::Admin => "admin",
        }
    }

    /// The permission with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.as_str() == word)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a role includes a permission.
pub const fn allow(role: Role, permission: Permission) -> bool {
    match permission {
        Permission::Read => true,
        Permission::Trigger
        | Permission::Cancel
        | Permission::Approve
        | Permission::Rerun
        | Permission::WriteContext => matches!(role, Role::Contributor | Role::Admin),
        Permission::WriteProject | Permission::Admin => matches!(role, Role::Admin),
    }
}

/// Whether the highest of a subject's roles includes a permission. No role: nothing is allowed.
pub fn allow_any(roles: impl IntoIterator<Item = Role>, permission: Permission) -> bool {
    roles.into_iter().max().is_some_and(|role| allow(role, permission))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of security §7.2 that these words cover: viewer, contributor, admin.
    const MATRIX: [(Permission, [bool; 3]); 8] = [
        (Permission::Read, [true, true, true]),
        (Permission::Trigger, [false, true, true]),
        (Permission::Cancel, [false, true, true]),
        (Permission::Approve, [false, true, true]),
        (Permission::Rerun, [false, true, true]),
        (Permission::WriteProject, [false, false, true]),
        (Permission::WriteContext, [false, true, true]),
        (Permission::Admin, [false, false, true]),
    ];

    #[test]
    fn the_matrix_holds() {
        for (permission, row) in MATRIX {
            for (role, expected) in Role::ALL.into_iter().zip(row) {
                assert_eq!(allow(role, permission), expected, "{role} {permission}");
            }
        }
    }

    #[test]
    fn a_higher_role_never_loses_a_permission() {
        for permission in Permission::ALL {
            for pair in Role::ALL.windows(2) {
                assert!(allow(pair[0], permission) <= allow(pair[1], permission), "{permission}");
            }
        }
    }

    #[test]
    fn no_role_means_no() {
        assert!(!allow_any([], Permission::Read));
        assert!(allow_any([Role::Viewer, Role::Admin], Permission::Admin));
    }

    #[test]
    fn words_and_values_agree() {
        for permission in Permission::ALL {
            assert_eq!(Permission::parse(permission.as_str()), Some(permission));
            assert_eq!(serde_json::to_value(permission).unwrap(), permission.as_str());
        }
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Permission::parse("everything"), None);
    }
}
