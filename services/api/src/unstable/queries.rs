//! Look-ups and compiles. What is not there is null: the command line makes its own message of that.

use super::{
    Outcome, app, caller,
    types::{
        CategoryConnection, ConfigResult, Namespace, OrbCategory, OrbConnection, OrbNode, Organization,
        PageInfo, StringKeyVal, VcsType, VersionNode, list,
    },
};
use crate::{configs, error::Fail, view};
use async_graphql::{Context, ID, Object};
use contracts::{
    RequestError,
    orbs::{GetOrb, GetOrbNamespace, GetOrbVersion, NamespaceKey, OrbKey, ValidateOrb},
};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Queries of the command line.
pub struct Query;

/// Null for what is not there, or is not a name at all.
fn optional<T>(found: Result<T, RequestError>) -> Outcome<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(RequestError::Refused(refusal)) if ["not_found", "invalid"].contains(&refusal.code.as_str()) => {
            Ok(None)
        }
        Err(error) => Err(Fail::from(error).into()),
    }
}

#[Object]
impl Query {
    /// An organisation of the caller, by id or name.
    async fn organization(
        &self,
        ctx: &Context<'_>,
        id: Option<ID>,
        name: Option<String>,
        #[graphql(name = "vcsType")] _vcs_type: Option<VcsType>,
    ) -> Outcome<Option<Organization>> {
        let all = view::orgs(app(ctx), caller(ctx)?).await?;
        let found = all.into_iter().find(|org| match (&id, &name) {
            (Some(id), _) => org.id.to_string().eq_ignore_ascii_case(id),
            (None, Some(name)) => org.name == *name,
            (None, None) => false,
        });
        Ok(found.map(|org| Organization { id: org.id.uuid(), name: org.name, vcs_type: VcsType::Git }))
    }

    /// A namespace by name.
    async fn registry_namespace(
        &self,
        ctx: &Context<'_>,
        name: Option<String>,
    ) -> Outcome<Option<Namespace>> {
        let ask = GetOrbNamespace { namespace: NamespaceKey::Name(name.unwrap_or_default()) };
        Ok(optional(app(ctx).ask(caller(ctx)?, &ask).await)?.map(Namespace))
    }

    /// An orb by `namespace/orb`.
    async fn orb(&self, ctx: &Context<'_>, name: Option<String>) -> Outcome<Option<OrbNode>> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let orgs = configs::orgs(app, caller, None).await?;
        let ask = GetOrb { orb: OrbKey::Name(name.unwrap_or_default()), orgs };
        Ok(optional(app.ask(caller, &ask).await)?.map(OrbNode))
    }

    /// All orbs that the caller may use. None is certified here: a list of certified ones has all.
    #[graphql(complexity = "1 + 20 * child_complexity")]
    async fn orbs(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        #[graphql(name = "certifiedOnly")] _certified_only: Option<bool>,
    ) -> Outcome<OrbConnection> {
        list(ctx, None, None, first, after).await
    }

    /// A version of an orb.
    async fn orb_version(&self, ctx: &Context<'_>, orb_version_ref: String) -> Outcome<Option<VersionNode>> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let orgs = configs::orgs(app, caller, None).await?;
        let Some(found) =
            optional(app.ask(caller, &GetOrbVersion { reference: orb_version_ref, orgs }).await)?
        else {
            return Ok(None);
        };
        let source = Some(app.receive(found.source).await?);
        Ok(Some(VersionNode { version: found.version, orb: found.orb, source }))
    }

    /// Categories of orbs: none.
    async fn orb_categories(
        &self,
        #[graphql(name = "first")] _first: Option<i32>,
        #[graphql(name = "after")] _after: Option<String>,
    ) -> CategoryConnection {
        CategoryConnection { total_count: 0, edges: Vec::new(), page_info: PageInfo { has_next_page: false } }
    }

    /// A category by name: there is none.
    async fn orb_category_by_name(
        &self,
        #[graphql(name = "name")] _name: Option<String>,
    ) -> Option<OrbCategory> {
        None
    }

    /// Compiles a configuration.
    #[graphql(complexity = "100")]
    #[allow(clippy::too_many_arguments, reason = "the command line's own arguments")]
    async fn build_config(
        &self,
        ctx: &Context<'_>,
        config_yaml: String,
        pipeline_values: Option<Vec<StringKeyVal>>,
        pipeline_parameters_json: Option<String>,
        org_id: Option<Uuid>,
        org_slug: Option<String>,
        #[graphql(name = "next")] _next: Option<bool>,
    ) -> Outcome<ConfigResult> {
        let parameters = match pipeline_parameters_json.filter(|text| !text.is_empty()) {
            None => Map::new(),
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| Fail::invalid(format!("pipelineParametersJson: {error}")))?,
        };
        let values = pipeline_values.unwrap_or_default().into_iter();
        let how = configs::Compile {
            owner: org_id.map(|id| id.to_string()).or(org_slug),
            parameters,
            values: values.map(|pair| (pair.key, Value::String(pair.val))).collect(),
        };
        let found = configs::compile(app(ctx), caller(ctx)?, config_yaml.clone(), how).await?;
        Ok(ConfigResult::new(config_yaml, found))
    }

    /// Compiles a configuration with nothing given.
    #[graphql(complexity = "100")]
    async fn validate_config(&self, ctx: &Context<'_>, config_yaml: String) -> Outcome<ConfigResult> {
        let how = configs::Compile::default();
        let found = configs::compile(app(ctx), caller(ctx)?, config_yaml.clone(), how).await?;
        Ok(ConfigResult::new(config_yaml, found))
    }

    /// Checks the source of an orb.
    #[graphql(complexity = "100")]
    async fn orb_config(
        &self,
        ctx: &Context<'_>,
        orb_yaml: String,
        owner_id: Option<Uuid>,
    ) -> Outcome<ConfigResult> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let owner = owner_id.map(|id| id.to_string());
        let orgs = configs::orgs(app, caller, owner.as_deref()).await?;
        let ask = ValidateOrb { source: app.send(orb_yaml.clone()).await?, orgs };
        let reply = app.ask(caller, &ask).await.map_err(Fail::from)?;
        Ok(ConfigResult::new(orb_yaml, configs::reply(app, reply).await?))
    }
}
