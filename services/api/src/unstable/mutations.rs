//! Changes of the registry. The owner's "no" is an entry in `errors`.

use super::{
    Outcome, app, caller,
    types::{Namespace, OrbNode, VersionNode},
};
use crate::{auth::Caller, configs, error::Fail, state::App};
use async_graphql::{Context, Object, SimpleObject};
use contracts::orbs::{
    CreateOrb, CreateOrbNamespace, DeleteOrbNamespace, GetOrb, GetOrbNamespace, NamespaceKey, Orb, OrbKey,
    OrbNamespace, PromoteOrb, PublishOrb, RenameOrbNamespace, SetOrbListed,
};
use ids::{OrbId, OrbNamespaceId, OrgId};
use model::permission::Permission;
use uuid::Uuid;

/// Mutations of the command line.
pub struct Mutation;

/// Why nothing was changed.
#[derive(SimpleObject)]
pub struct ChangeError {
    message: String,
    #[graphql(name = "type")]
    kind: String,
}

impl From<Fail> for ChangeError {
    fn from(fail: Fail) -> Self {
        Self { message: fail.message, kind: fail.code.to_uppercase() }
    }
}

macro_rules! payload {
    ($(#[$doc:meta])* $name:ident { $field:ident: $type:ty }) => {
        $(#[$doc])*
        #[derive(SimpleObject)]
        pub struct $name {
            $field: Option<$type>,
            errors: Vec<ChangeError>,
        }

        impl From<Result<$type, Fail>> for $name {
            fn from(done: Result<$type, Fail>) -> Self {
                match done {
                    Ok(value) => Self { $field: Some(value), errors: Vec::new() },
                    Err(fail) => Self { $field: None, errors: vec![fail.into()] },
                }
            }
        }
    };
}

payload!(/// A namespace that was changed.
NamespacePayload { namespace: Namespace });
payload!(/// An orb that was made.
OrbPayload { orb: OrbNode });
payload!(/// A version that was published.
VersionPayload { orb: VersionNode });
payload!(/// Whether an orb is shown.
ListedPayload { listed: bool });
payload!(/// Whether something is gone.
DeletedPayload { deleted: bool });

async fn namespace(app: &App, caller: &Caller, key: NamespaceKey) -> Result<OrbNamespace, Fail> {
    Ok(app.ask(caller, &GetOrbNamespace { namespace: key }).await?)
}

/// The orb, if the caller may do this in its organisation.
async fn permitted(app: &App, caller: &Caller, orb: OrbKey, what: Permission) -> Result<Orb, Fail> {
    let orgs = configs::orgs(app, caller, None).await?;
    let orb = app.ask(caller, &GetOrb { orb, orgs }).await?;
    app.allow(caller, what, orb.namespace.org_id).await?;
    Ok(orb)
}

/// Anybody who builds may publish dev versions; published ones are there for good, and an administrator's act.
fn needed(version: &str) -> Permission {
    if version.starts_with("dev:") { Permission::Trigger } else { Permission::Admin }
}

async fn publish(
    app: &App,
    caller: &Caller,
    orb: OrbKey,
    version: String,
    yaml: String,
) -> Result<VersionNode, Fail> {
    let orb = permitted(app, caller, orb, needed(&version)).await?;
    let ask = PublishOrb { orb: OrbKey::Id(orb.id), version, source: app.send(yaml.clone()).await? };
    let version = app.ask(caller, &ask).await?;
    Ok(VersionNode { version, orb, source: Some(yaml) })
}

fn key(id: Option<Uuid>, namespace: Option<String>, name: Option<String>) -> OrbKey {
    match id {
        Some(id) => OrbKey::Id(OrbId(id)),
        None => OrbKey::Name(format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())),
    }
}

async fn create_namespace(
    app: &App,
    caller: &Caller,
    name: String,
    org_id: OrgId,
) -> Result<Namespace, Fail> {
    app.allow(caller, Permission::Admin, org_id).await?;
    Ok(Namespace(app.command(caller, &CreateOrbNamespace { org_id, name }).await?))
}

async fn create_orb(
    app: &App,
    caller: &Caller,
    name: String,
    namespace_id: Uuid,
    is_private: bool,
) -> Result<OrbNode, Fail> {
    let namespace = namespace(app, caller, NamespaceKey::Id(OrbNamespaceId(namespace_id))).await?;
    app.allow(caller, Permission::Admin, namespace.org_id).await?;
    // Some clients send the whole name.
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let ask = CreateOrb { namespace: NamespaceKey::Id(namespace.id), name, is_private };
    Ok(OrbNode(app.command(caller, &ask).await?))
}

#[Object]
impl Mutation {
    /// Takes a namespace for an organisation.
    async fn create_namespace(
        &self,
        ctx: &Context<'_>,
        name: String,
        organization_id: Uuid,
    ) -> Outcome<NamespacePayload> {
        Ok(create_namespace(app(ctx), caller(ctx)?, name, OrgId(organization_id)).await.into())
    }

    /// Takes a namespace for orbs that come from elsewhere; the organisation is the caller's first.
    async fn import_namespace(&self, ctx: &Context<'_>, name: String) -> Outcome<NamespacePayload> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let Some(org) = configs::orgs(app, caller, None).await?.first().copied() else {
            return Ok(Err(Fail::not_found("Organization")).into());
        };
        Ok(create_namespace(app, caller, name, org).await.into())
    }

    /// Gives a namespace another name.
    async fn rename_namespace(
        &self,
        ctx: &Context<'_>,
        namespace_id: Uuid,
        new_name: String,
    ) -> Outcome<NamespacePayload> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let id = OrbNamespaceId(namespace_id);
        let renamed = async {
            let held = namespace(app, caller, NamespaceKey::Id(id)).await?;
            app.allow(caller, Permission::Admin, held.org_id).await?;
            Ok::<_, Fail>(Namespace(app.command(caller, &RenameOrbNamespace { id, name: new_name }).await?))
        };
        Ok(renamed.await.into())
    }

    /// Removes a namespace and its orbs.
    async fn delete_namespace_and_related_orbs(
        &self,
        ctx: &Context<'_>,
        namespace_id: Uuid,
    ) -> Outcome<DeletedPayload> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let id = OrbNamespaceId(namespace_id);
        let deleted = async {
            let held = namespace(app, caller, NamespaceKey::Id(id)).await?;
            app.allow(caller, Permission::Admin, held.org_id).await?;
            app.command(caller, &DeleteOrbNamespace { id }).await?;
            Ok::<_, Fail>(true)
        };
        Ok(deleted.await.into())
    }

    /// Removes a former name of a namespace; it is free as soon as the namespace has another.
    async fn delete_namespace_alias(&self, ctx: &Context<'_>, name: String) -> Outcome<DeletedPayload> {
        let found = namespace(app(ctx), caller(ctx)?, NamespaceKey::Name(name.clone())).await;
        let held = Fail::new(
            axum::http::StatusCode::CONFLICT,
            "exists",
            format!("{name} is a namespace and not the former name of one"),
        );
        Ok(if found.is_ok() { Err(held) } else { Ok(true) }.into())
    }

    /// Makes an orb.
    async fn create_orb(
        &self,
        ctx: &Context<'_>,
        name: String,
        registry_namespace_id: Uuid,
        #[graphql(default)] is_private: bool,
    ) -> Outcome<OrbPayload> {
        Ok(create_orb(app(ctx), caller(ctx)?, name, registry_namespace_id, is_private).await.into())
    }

    /// Makes an orb that comes from elsewhere.
    async fn import_orb(
        &self,
        ctx: &Context<'_>,
        name: String,
        registry_namespace_id: Uuid,
    ) -> Outcome<OrbPayload> {
        Ok(create_orb(app(ctx), caller(ctx)?, name, registry_namespace_id, false).await.into())
    }

    /// Publishes a version.
    async fn publish_orb(
        &self,
        ctx: &Context<'_>,
        orb_id: Option<Uuid>,
        orb_name: Option<String>,
        namespace_name: Option<String>,
        orb_yaml: String,
        version: String,
    ) -> Outcome<VersionPayload> {
        let orb = key(orb_id, namespace_name, orb_name);
        Ok(publish(app(ctx), caller(ctx)?, orb, version, orb_yaml).await.into())
    }

    /// Publishes a version that was published elsewhere.
    async fn import_orb_version(
        &self,
        ctx: &Context<'_>,
        orb_id: Uuid,
        orb_yaml: String,
        version: String,
    ) -> Outcome<VersionPayload> {
        Ok(publish(app(ctx), caller(ctx)?, OrbKey::Id(OrbId(orb_id)), version, orb_yaml).await.into())
    }

    /// Publishes what a dev version holds.
    async fn promote_orb(
        &self,
        ctx: &Context<'_>,
        orb_id: Option<Uuid>,
        orb_name: Option<String>,
        namespace_name: Option<String>,
        dev_version: String,
        semantic_version: String,
    ) -> Outcome<VersionPayload> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let promoted = async {
            let orb =
                permitted(app, caller, key(orb_id, namespace_name, orb_name), Permission::Admin).await?;
            let ask = PromoteOrb { orb: OrbKey::Id(orb.id), from: dev_version, to: semantic_version };
            let version = app.ask(caller, &ask).await?;
            Ok::<_, Fail>(VersionNode { version, orb, source: None })
        };
        Ok(promoted.await.into())
    }

    /// Shows an orb in lists, or no longer.
    async fn set_orb_list_status(
        &self,
        ctx: &Context<'_>,
        orb_id: Uuid,
        list: bool,
    ) -> Outcome<ListedPayload> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let changed = async {
            let id = OrbId(orb_id);
            permitted(app, caller, OrbKey::Id(id), Permission::Admin).await?;
            let orb = app.command(caller, &SetOrbListed { id, listed: list }).await?;
            Ok::<_, Fail>(orb.listed)
        };
        Ok(changed.await.into())
    }
}
