//! The stack with a proxy before each server.

use crate::proxy::{Proxy, Way};
use anyhow::Context;
use gantry_e2e::{Suite, stack};
use std::{collections::BTreeMap, fs, ops::Deref};

/// What the suite reaches through a proxy.
const PROXIED: [&str; 8] = ["postgres", "redis", "amqp", "s3", "vault", "nomad", "mongo", "agents"];

/// The stack and its proxies.
pub struct Stack {
    plain: stack::Stack,
    proxies: BTreeMap<&'static str, Proxy>,
}

impl Deref for Stack {
    type Target = stack::Stack;

    fn deref(&self) -> &stack::Stack {
        &self.plain
    }
}

impl Stack {
    /// Puts proxies in place and starts everything.
    pub async fn up() -> anyhow::Result<(Self, Suite)> {
        let plain = stack::Stack::new(&[])?;
        let ports = plain.folder.join("ports");
        let mut proxies = BTreeMap::new();
        for name in PROXIED {
            let known = stack::port(&ports, &format!("via_{name}"));
            let proxy = Proxy::bind(known, ports.clone(), name).await?;
            if known.is_none() {
                let text = fs::read_to_string(&ports).unwrap_or_default();
                fs::write(&ports, format!("{text}via_{name}={}\n", proxy.port))?;
            }
            proxies.insert(name, proxy);
        }
        let suite = plain.suite().await?;
        Ok((Self { plain, proxies }, suite))
    }

    /// How bytes pass to a server from now on.
    pub fn way(&self, name: &str, way: Way) -> anyhow::Result<()> {
        self.proxies.get(name).with_context(|| format!("no proxy before {name}"))?.set(way);
        Ok(())
    }

    /// The same for all servers.
    pub fn all(&self, way: Way) {
        for (name, proxy) in &self.proxies {
            if *name != "agents" {
                proxy.set(way);
            }
        }
    }

    /// Ends everything.
    pub async fn down(&self) -> anyhow::Result<()> {
        self.all(Way::Through);
        self.plain.down().await
    }
}
