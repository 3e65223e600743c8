//! What the registry's queries answer with.

use super::{Outcome, app, caller};
use crate::{configs, error::Fail, v2::time};
use async_graphql::{Context, Enum, InputObject, Object, SimpleObject};
use contracts::orbs::{GetOrbVersion, ListOrbs, Orb, OrbNamespace, OrbPage, OrbVersion};
use uuid::Uuid;

/// Kinds of origins of an organisation.
#[derive(Enum, Copy, Clone, PartialEq, Eq)]
#[graphql(name = "VCSType")]
pub enum VcsType {
    /// GitHub.
    Github,
    /// Bitbucket.
    Bitbucket,
    /// CircleCI.
    Circleci,
    /// The embedded git server.
    Git,
}

/// Which orbs of a namespace.
#[derive(Enum, Copy, Clone, PartialEq, Eq)]
#[graphql(name = "OrbListViewType")]
pub enum OrbListView {
    /// Those that everybody may use.
    PublicOnly,
    /// Those of the organisation alone.
    PrivateOnly,
}

/// A pipeline value.
#[derive(InputObject)]
#[graphql(name = "StringKeyVal")]
pub struct StringKeyVal {
    /// Name.
    pub key: String,
    /// Value.
    pub val: String,
}

/// Why a text is not valid.
#[derive(SimpleObject)]
pub struct ConfigError {
    /// What is wrong, with its place.
    pub message: String,
}

/// A compiled text.
#[derive(SimpleObject)]
pub struct ConfigResult {
    /// Whether it is valid.
    pub valid: bool,
    /// Why not.
    pub errors: Vec<ConfigError>,
    /// As it was sent.
    pub source_yaml: String,
    /// After all expansion.
    pub output_yaml: String,
}

impl ConfigResult {
    /// Of a compile.
    pub fn new(source: String, (output, errors): (String, Vec<String>)) -> Self {
        Self {
            valid: errors.is_empty(),
            errors: errors.into_iter().map(|message| ConfigError { message }).collect(),
            source_yaml: source,
            output_yaml: output,
        }
    }
}

/// An organisation.
#[derive(SimpleObject)]
pub struct Organization {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub vcs_type: VcsType,
}

/// A category of orbs; this registry has none.
#[derive(SimpleObject)]
pub struct OrbCategory {
    id: Uuid,
    name: String,
}

/// How much an orb is used; this registry does not count.
#[derive(SimpleObject)]
pub struct OrbStatistics {
    #[graphql(name = "last30DaysBuildCount")]
    builds: i32,
    #[graphql(name = "last30DaysProjectCount")]
    projects: i32,
    #[graphql(name = "last30DaysOrganizationCount")]
    organizations: i32,
}

/// Whether there is more.
#[derive(SimpleObject)]
pub struct PageInfo {
    pub has_next_page: bool,
}

/// A category in a list.
#[derive(SimpleObject)]
pub struct CategoryEdge {
    cursor: String,
    node: OrbCategory,
}

/// Categories.
#[derive(SimpleObject)]
pub struct CategoryConnection {
    pub total_count: i32,
    pub edges: Vec<CategoryEdge>,
    pub page_info: PageInfo,
}

/// A namespace.
pub struct Namespace(pub OrbNamespace);

#[Object(name = "RegistryNamespace")]
impl Namespace {
    async fn id(&self) -> Uuid {
        self.0.id.uuid()
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn created_at(&self) -> String {
        time(self.0.created_at)
    }
    /// Its orbs, by name.
    #[graphql(complexity = "1 + 20 * child_complexity")]
    async fn orbs(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        view: Option<OrbListView>,
    ) -> Outcome<OrbConnection> {
        let private = view.map(|view| view == OrbListView::PrivateOnly);
        list(ctx, Some(self.0.name.clone()), private, first, after).await
    }
}

/// An orb.
pub struct OrbNode(pub Orb);

#[Object(name = "Orb")]
impl OrbNode {
    async fn id(&self) -> Uuid {
        self.0.id.uuid()
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn is_private(&self) -> bool {
        self.0.is_private
    }
    async fn is_listed(&self) -> bool {
        self.0.listed
    }
    async fn created_at(&self) -> String {
        time(self.0.created_at)
    }
    async fn namespace(&self) -> Namespace {
        Namespace(self.0.namespace.clone())
    }
    async fn categories(&self) -> Vec<OrbCategory> {
        Vec::new()
    }
    async fn statistics(&self) -> OrbStatistics {
        OrbStatistics { builds: 0, projects: 0, organizations: 0 }
    }
    /// Published versions, highest first.
    async fn versions(&self, count: Option<i32>) -> Vec<VersionNode> {
        let count = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or_default());
        let versions = self.0.versions.iter().take(count);
        versions
            .map(|version| VersionNode { version: version.clone(), orb: self.0.clone(), source: None })
            .collect()
    }
}

/// A version of an orb.
pub struct VersionNode {
    pub version: OrbVersion,
    pub orb: Orb,
    /// Its source, where it came along.
    pub source: Option<String>,
}

#[Object(name = "OrbVersion")]
impl VersionNode {
    async fn id(&self) -> Uuid {
        self.version.id.uuid()
    }
    async fn version(&self) -> &str {
        &self.version.version
    }
    async fn created_at(&self) -> String {
        time(self.version.created_at)
    }
    async fn orb(&self) -> OrbNode {
        OrbNode(self.orb.clone())
    }
    async fn source(&self, ctx: &Context<'_>) -> Outcome<String> {
        if let Some(source) = &self.source {
            return Ok(source.clone());
        }
        let (app, caller) = (app(ctx), caller(ctx)?);
        let ask = GetOrbVersion {
            reference: format!("{}@{}", self.orb.name, self.version.version),
            orgs: configs::orgs(app, caller, None).await?,
        };
        let found = app.ask(caller, &ask).await.map_err(Fail::from)?;
        Ok(app.receive(found.source).await?)
    }
}

/// An orb in a list.
#[derive(SimpleObject)]
pub struct OrbEdge {
    cursor: String,
    node: OrbNode,
}

/// Orbs.
#[derive(SimpleObject)]
pub struct OrbConnection {
    total_count: i64,
    edges: Vec<OrbEdge>,
    page_info: PageInfo,
}

/// Orbs that the caller may use, by name.
pub async fn list(
    ctx: &Context<'_>,
    namespace: Option<String>,
    private: Option<bool>,
    first: Option<i32>,
    after: Option<String>,
) -> Outcome<OrbConnection> {
    let (app, caller) = (app(ctx), caller(ctx)?);
    let ask = ListOrbs {
        namespace,
        private,
        orgs: configs::orgs(app, caller, None).await?,
        after: after.filter(|after| !after.is_empty()),
        first: u32::try_from(first.unwrap_or(20)).unwrap_or_default(),
    };
    let OrbPage { orbs, total, more } = app.ask(caller, &ask).await.map_err(Fail::from)?;
    Ok(OrbConnection {
        total_count: total,
        edges: orbs.into_iter().map(|orb| OrbEdge { cursor: orb.name.clone(), node: OrbNode(orb) }).collect(),
        page_info: PageInfo { has_next_page: more },
    })
}
