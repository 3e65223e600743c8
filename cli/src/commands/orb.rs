//! `gantry orb`: the server's orb registry.

mod import;
mod registry;

use super::{print_list, text};
use crate::{Client, Exit, Failure, Global};
use clap::Subcommand;
pub(super) use registry::Registry;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// `gantry orb …`
#[derive(Subcommand, Debug)]
pub enum Orb {
    /// Orbs that you may use
    #[command(after_help = "Examples:\n  gantry orb list\n  gantry orb list acme --json")]
    List {
        /// Only those of this namespace
        namespace: Option<String>,
    },
    /// What is known of an orb, with its versions
    #[command(after_help = "Examples:\n  gantry orb info acme/greet\n  gantry orb info acme/greet@1")]
    Info {
        /// `namespace/orb`, with or without `@version`
        orb: String,
    },
    /// Print the source of a version
    #[command(
        after_help = "Examples:\n  gantry orb source acme/greet@1.2\n  gantry orb source acme/greet@1.2 > greet.yml"
    )]
    Source {
        /// `namespace/orb`, with or without `@version`
        orb: String,
    },
    /// Check an orb as the server would
    #[command(after_help = "Examples:\n  gantry orb validate orb.yml\n  gantry orb validate src/")]
    Validate {
        /// Packed source, or a folder to pack
        source: PathBuf,
    },
    /// Make one file of an orb's folder
    #[command(after_help = "Examples:\n  gantry orb pack src/\n  gantry orb pack src/ > orb.yml")]
    Pack {
        /// Folder
        folder: PathBuf,
    },
    /// Publish a version; a published one never changes
    #[command(
        after_help = "Examples:\n  gantry orb publish orb.yml acme/greet@dev:first\n  gantry orb publish src/ acme/greet@1.0.0 --create"
    )]
    Publish {
        /// Packed source, or a folder to pack
        source: PathBuf,
        /// `namespace/orb@1.2.3` or `namespace/orb@dev:name`
        version: String,
        /// Make the namespace and the orb where they do not exist
        #[arg(long)]
        create: bool,
        /// With --create: only its own organisation may use the orb
        #[arg(long, requires = "create")]
        private: bool,
        /// With --create: organisation that takes the namespace
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Publish what a dev version holds
    #[command(
        after_help = "Examples:\n  gantry orb promote acme/greet@dev:first 1.0.0\n  gantry orb promote acme/greet@dev:first 1.0.0 --json"
    )]
    Promote {
        /// `namespace/orb@dev:name`
        dev: String,
        /// `1.2.3`
        version: String,
    },
    /// Bring orbs from a folder, a bundle or another server
    #[command(after_help = import::HELP)]
    Import(import::Import),
    /// Write a bundle of orbs for a server without a network
    #[command(after_help = import::EXPORT_HELP)]
    Export(import::Export),
}

impl Orb {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Pack { folder } => {
                print!("{}", packed(&folder)?);
                Ok(Exit::Success)
            }
            Self::Import(import) => import.run(global).await,
            Self::Export(export) => export.run(global).await,
            other => other.ask(global, &Registry::of(Client::connect(global)?)).await,
        }
    }

    async fn ask(self, global: &Global, registry: &Registry) -> Result<Exit, Failure> {
        match self {
            Self::List { namespace } => {
                let orbs = registry.orbs(namespace.as_deref()).await?;
                print_list(global, &orbs, &["name", "version", "createdAt", "isPrivate"]);
            }
            Self::Info { orb } => {
                let found = registry.version(&orb).await?;
                if global.json {
                    println!("{found}");
                } else {
                    let versions = found.pointer("/orb/versions").and_then(Value::as_array);
                    let all: Vec<&str> =
                        versions.into_iter().flatten().map(|version| text(version, "version")).collect();
                    println!(
                        "name\t{}",
                        found.pointer("/orb/name").and_then(Value::as_str).unwrap_or_default()
                    );
                    println!(
                        "version\t{}\ncreated_at\t{}",
                        text(&found, "version"),
                        text(&found, "createdAt")
                    );
                    println!("versions\t{}", all.join(" "));
                }
            }
            Self::Source { orb } => print!("{}", text(&registry.version(&orb).await?, "source")),
            Self::Validate { source } => {
                let errors = registry.validate(&packed(&source)?).await?;
                let valid = errors.is_empty();
                if global.json {
                    println!("{}", json!({ "valid": valid, "errors": errors }));
                } else if valid {
                    eprintln!("The orb is valid.");
                } else {
                    errors.iter().for_each(|error| eprintln!("{error}"));
                }
                return Ok(if valid { Exit::Success } else { Exit::Invalid });
            }
            Self::Publish { source, version: reference, create, private, org } => {
                let (name, version) = split(&reference)?;
                let source = packed(&source)?;
                if create {
                    registry.ensure(name, &org, private).await?;
                }
                let made = registry.publish(name, version, &source).await?;
                done(global, &format!("{name}@{made}"), "Published");
            }
            Self::Promote { dev, version } => {
                let (name, from) = split(&dev)?;
                let made = registry.promote(name, from, &version).await?;
                done(global, &format!("{name}@{made}"), "Published");
            }
            Self::Pack { .. } | Self::Import(_) | Self::Export(_) => {}
        }
        Ok(Exit::Success)
    }
}

fn done(global: &Global, reference: &str, what: &str) {
    if global.json {
        println!("{}", json!({ "orb": reference }));
    } else {
        eprintln!("{what} {reference}.");
    }
}

/// `namespace/orb` and what stands behind the `@`.
fn split(reference: &str) -> Result<(&str, &str), Failure> {
    reference.split_once('@').filter(|(name, version)| name.contains('/') && !version.is_empty()).ok_or_else(
        || Failure::new(Exit::Usage, format!("{reference} names no version: write namespace/orb@version")),
    )
}

/// The text of a file, or of a folder after packing.
fn packed(path: &Path) -> Result<String, Failure> {
    if path.is_dir() {
        return orb_folder::pack_folder(path).map_err(|error| {
            Failure::new(Exit::Invalid, format!("{} cannot be packed: {error}", path.display()))
        });
    }
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::NotFound, format!("{} cannot be read: {error}", path.display())))
}
