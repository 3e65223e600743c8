//! The databases that the configuration names, opened.

use crate::config::{Database, Invalid};
use anyhow::Context;
use eventstore::{Databases, Own, lazy_pool, open_pool_with, wait_for_pool};
use sqlx::{PgPool, postgres::PgConnectOptions};
use std::str::FromStr;

/// Which of the databases must answer before this process goes on, and for how long it waits.
#[derive(Clone, Copy, Debug)]
pub enum Needed<'a> {
    /// All of them, within half a minute.
    All,
    /// The common one and those of these services, however long it takes (reliability R-38). The others are reached
    /// when something is read there: their services' trouble is not ours.
    Of(&'a [&'static str]),
}

/// Opens the databases of `[database] kind = "url"`, with a pool per address.
///
/// # Errors
/// An address that cannot be read, or a server that refuses us or stays away.
pub async fn open(database: &Database, connections: u32, needed: Needed<'_>) -> anyhow::Result<Databases> {
    let common = connect(options("database.url", &database.url)?, connections, needed).await;
    let common = common.context("the database of [database] url does not answer")?;
    let mut own: Vec<Own> = Vec::new();
    for (address, key, services) in addresses(database) {
        let options = options(&key, address)?;
        let pool = match needed {
            Needed::Of(roles) if !holds(&services, roles) => lazy_pool(&options, connections),
            _ => connect(options, connections, needed)
                .await
                .with_context(|| format!("the database of {key} does not answer"))?,
        };
        own.push(Own { services, pool });
    }
    Ok(Databases::new(common, own))
}

/// Whether a process that runs these roles uses a service's database anyway. What only looks at it leaves others alone: a
/// connection from everybody to everything is more than a server has.
pub fn uses(databases: &Databases, roles: &[&str], service: &str) -> bool {
    let own = databases.own().iter().find(|own| own.services.contains(&service));
    own.is_none_or(|own| holds(&own.services, roles))
}

/// Whether one of these roles is in the database of these services.
pub fn holds(services: &[&str], roles: &[&str]) -> bool {
    services.iter().any(|service| roles.contains(service))
}

/// Each address that is not the common one, with the first key that names it and all services that are there.
fn addresses(database: &Database) -> Vec<(&str, String, Vec<&'static str>)> {
    let mut found: Vec<(&str, String, Vec<&'static str>)> = Vec::new();
    for (service, key, address) in database.of.named() {
        if address.is_empty() || address == database.url {
            continue;
        }
        let at = found.iter().position(|known| known.0 == address).unwrap_or_else(|| {
            found.push((address, format!("database.of.{key}"), Vec::new()));
            found.len() - 1
        });
        found[at].2.push(service);
        // It reads the tables that the projector writes.
        if service == "projector" {
            found[at].2.push("api");
        }
    }
    found
}

async fn connect(
    options: PgConnectOptions,
    connections: u32,
    needed: Needed<'_>,
) -> eventstore::Result<PgPool> {
    match needed {
        Needed::All => open_pool_with(options, connections).await,
        Needed::Of(_) => wait_for_pool(options, connections).await,
    }
}

/// How to connect to a database, of the key that names it. The text of a parser's error would show the password.
fn options(key: &str, url: &str) -> Result<PgConnectOptions, Invalid> {
    let wrong =
        || Invalid::new(format!("{key} is no address of a database; write it as postgres://user@host/name"));
    // The parser takes any scheme for this one.
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(wrong());
    }
    PgConnectOptions::from_str(url).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OwnDatabases;

    #[test]
    fn services_of_one_address_share_its_pool_and_api_goes_with_the_projector() {
        let of = OwnDatabases {
            conductor: "postgres://b/one".into(),
            dispatcher: "postgres://b/two".into(),
            domain: "postgres://a/common".into(),
            projector: "postgres://b/one".into(),
            ..OwnDatabases::default()
        };
        let database = Database { url: "postgres://a/common".into(), of, ..Database::default() };
        let found = addresses(&database);
        let found: Vec<_> =
            found.iter().map(|(url, key, services)| (*url, key.as_str(), services.as_slice())).collect();
        assert_eq!(
            found,
            [
                ("postgres://b/one", "database.of.conductor", ["conductor", "projector", "api"].as_slice()),
                ("postgres://b/two", "database.of.dispatcher", ["dispatcher"].as_slice()),
            ]
        );
    }

    #[test]
    fn an_address_that_is_none_is_named_by_its_key_without_its_text() {
        for address in
            ["conductor:secret", "mysql://user:secret@db/name", "postgres://user:secret@db:port/name"]
        {
            let error = options("database.of.conductor", address).unwrap_err().to_string();
            assert!(error.contains("database.of.conductor") && !error.contains("secret"), "{error}");
        }
    }
}
