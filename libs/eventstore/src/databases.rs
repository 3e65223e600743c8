//! Which database holds which service.

use crate::schema_of;
use sqlx::PgPool;
use std::{iter, sync::Arc};

/// The databases of a suite: a common one, and those of services that have their own. Cheap to clone.
///
/// A service's tables and events are in one database; nothing joins over two. What belongs to no service (the bus's
/// notices and detour, records in Postgres) is in the common one.
#[derive(Clone, Debug)]
pub struct Databases {
    common: PgPool,
    own: Arc<[Own]>,
}

/// A database of some services alone.
#[derive(Clone, Debug)]
pub struct Own {
    /// Their names.
    pub services: Vec<&'static str>,
    /// The way to it.
    pub pool: PgPool,
}

impl Databases {
    /// Who is in none of `own` is in `common`.
    pub fn new(common: PgPool, own: Vec<Own>) -> Self {
        Self { common, own: own.into() }
    }

    /// That of no service.
    pub fn common(&self) -> &PgPool {
        &self.common
    }

    /// Those of single services.
    pub fn own(&self) -> &[Own] {
        &self.own
    }

    /// Where a service is, by its name or its schema's.
    pub fn of(&self, service: &str) -> &PgPool {
        let schema = schema_of(service);
        let own = self.own.iter().find(|own| own.services.iter().any(|name| schema_of(name) == schema));
        own.map_or(&self.common, |own| &own.pool)
    }

    /// All of them.
    pub fn pools(&self) -> impl Iterator<Item = &PgPool> {
        iter::once(&self.common).chain(self.own.iter().map(|own| &own.pool))
    }
}

impl From<PgPool> for Databases {
    /// All services in one.
    fn from(common: PgPool) -> Self {
        Self::new(common, Vec::new())
    }
}
