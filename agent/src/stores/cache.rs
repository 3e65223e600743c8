//! `save_cache` and `restore_cache` (execution §15).

use super::{
    key::{self, Facts, Template},
    size,
    transfer::{self, call},
};
use crate::{
    files::{Ask, Packed},
    helper::{Failed, feed},
    output::Stream,
    steps::Runner,
};
use agent_api::stores::{
    CacheCheck, CacheChecked, CacheCommit, CacheFind, CacheFound, CacheHit, Committed, MAX_KEY,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ids::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// How often a save begins anew when chunks that were there are gone.
const SAVES: usize = 2;

/// What stands in keys for secrets, and is not shown: who knows it could try values until one fits.
#[derive(Default)]
struct StandIns(BTreeSet<String>);

impl StandIns {
    /// A key for people.
    fn shown(&self, key: &str) -> String {
        self.0.iter().fold(key.to_owned(), |key, digits| {
            key.replace(digits, &String::from_utf8_lossy(masking::REPLACEMENT))
        })
    }
}

impl Runner {
    /// Fills in a key.
    async fn cache_key(
        &self,
        text: &str,
        stand_ins: &mut StandIns,
        stream: &mut Stream,
    ) -> Result<String, Failed> {
        let template = Template::parse(text).map_err(Failed::Told)?;
        let mut sums: BTreeMap<String, Result<String, String>> = BTreeMap::new();
        let files: Vec<String> = template.files().into_iter().collect();
        if !files.is_empty() {
            let places = files.iter().map(|file| key::place(file, &self.places.home, &self.places.work));
            let ask = Ask::Checksums { files: places.collect() };
            let found: Vec<Result<String, String>> = self.ask_helper(&ask, stream).await?;
            sums =
                files.into_iter().zip(found.into_iter().map(|sum| sum.map(|hex| base64_sum(&hex)))).collect();
        }
        let secrets = self.output.secrets();
        let given = template.variables().into_iter().filter_map(|name| {
            let value = self.environment.given.get(name)?;
            let in_key = if secrets.mask(value.as_bytes()) == value.as_bytes() {
                value.clone()
            } else {
                let digits = key::stand_in(&self.spec.repository_url, name, value);
                stand_ins.0.insert(digits.clone());
                digits
            };
            Some((name.to_owned(), in_key))
        });
        let given: BTreeMap<String, String> = given.collect();
        let facts = Facts {
            branch: self.spec.branch.as_deref().unwrap_or_default(),
            build_num: self.spec.job_number,
            revision: &self.spec.revision,
            checkout_key: &self.spec.repository_url,
            environment: &given,
            epoch: self.control.clock.now().timestamp(),
            arch: &key::arch(),
        };
        let key = template.expand(&facts, &sums).map_err(Failed::Told)?;
        if key.chars().count() > MAX_KEY {
            return Err(Failed::Told(format!(
                "error computing cache key: the key has {} characters; at most {MAX_KEY} are allowed",
                key.chars().count()
            )));
        }
        Ok(key)
    }

    /// A path as it is kept: relative ones joined with the working directory, `~` left for where it is restored.
    fn kept_path(&self, path: &str) -> String {
        if path.starts_with('~') || path.starts_with('/') {
            return path.to_owned();
        }
        let work = self.spec.definition.working_directory.trim_end_matches('/');
        let work = if work.starts_with(['~', '/']) { work.to_owned() } else { format!("~/{work}") };
        let path = path.trim_start_matches("./");
        if path.is_empty() || path == "." { work } else { format!("{work}/{path}") }
    }

    pub(super) async fn save_cache(
        &self,
        key: &str,
        paths: &[String],
        stream: &mut Stream,
    ) -> Result<(), Failed> {
        let mut stand_ins = StandIns::default();
        let key = self.cache_key(key, &mut stand_ins, stream).await?;
        let shown = stand_ins.shown(&key);
        let checked: CacheChecked =
            call(&self.control, "cache/check", &CacheCheck { key: key.clone() }).await?;
        if let Some(at) = checked.created_at {
            return exists(&shown, at, stream);
        }
        for _ in 0..SAVES {
            stream.note("Creating cache archive...")?;
            let ask = Ask::PackCache { paths: paths.iter().map(|path| self.located(path)).collect() };
            let control = &self.control;
            let uploaded =
                self.helper(&ask, stream, |ends| transfer::upload::<Packed>(control, ends)).await?;
            for (place, path) in paths.iter().enumerate() {
                if !uploaded.word.found.contains(&place) {
                    stream.note(&format!("Warning: the path {path} does not exist, it is left out"))?;
                }
            }
            if uploaded.word.found.is_empty() {
                return Err(Failed::Told("error creating cache archive: none of the paths exists".into()));
            }
            stream.note("Uploading cache archive...")?;
            let commit = CacheCommit {
                key: key.clone(),
                paths: paths.iter().map(|path| self.kept_path(path)).collect(),
                archive: uploaded.archive,
            };
            match call(control, "cache/commit", &commit).await? {
                Committed::Stored => {
                    stream.note(&format!("Stored Cache to {shown}"))?;
                    for path in uploaded.word.found.iter().filter_map(|place| paths.get(*place)) {
                        stream.note(&format!("  * {}", self.located(path).display()))?;
                    }
                    let (whole, sent) = (size(commit.archive.bytes), size(uploaded.sent));
                    return Ok(stream.note(&format!("Total size {whole}, uploaded {sent}"))?);
                }
                Committed::AlreadyExists { created_at } => return exists(&shown, created_at, stream),
                Committed::Missing { chunks } => {
                    tracing::info!(chunks = chunks.len(), "chunks went while the cache was saved");
                }
            }
        }
        Err(Failed::Told("the cache could not be stored: what was there of it is being removed".into()))
    }

    pub(super) async fn restore_cache(&self, keys: &[String], stream: &mut Stream) -> Result<(), Failed> {
        let mut expanded = Vec::with_capacity(keys.len());
        let mut stand_ins = StandIns::default();
        for key in keys {
            expanded.push(self.cache_key(key, &mut stand_ins, stream).await?);
        }
        let ask = CacheFind { keys: expanded.clone() };
        let CacheFound { hit } = call(&self.control, "cache/find", &ask).await?;
        let missed = hit.as_ref().map_or(expanded.len(), |hit| hit.candidate);
        for key in &expanded[..missed.min(expanded.len())] {
            stream.note(&format!("No cache is found for key: {}", stand_ins.shown(key)))?;
        }
        let Some(CacheHit { key, job_number, paths, archive, .. }) = hit else { return Ok(()) };
        let key = stand_ins.shown(&key);
        stream.note(&format!("Found a cache from build {job_number} at {key}"))?;
        stream.note(&format!("Size: {}", size(archive.bytes)))?;
        stream.note("Cached paths:")?;
        let roots: Vec<PathBuf> = paths.iter().map(|path| self.located(path)).collect();
        for path in &roots {
            stream.note(&format!("  * {}", path.display()))?;
        }
        stream.note("\nDownloading cache archive...\nValidating cache...\n\nUnarchiving cache...")?;
        let control = &self.control;
        let ask = Ask::UnpackCache { roots };
        let unpacked = self.helper(&ask, stream, |ends| async move {
            let (to, ended) = feed(ends);
            transfer::download(control, &archive, &to).await?;
            drop(to);
            ended.await.map_err(std::io::Error::other)?.map_err(|e| Failed::Told(e.to_string()))
        });
        match unpacked.await {
            Err(Failed::Told(why)) if why.is_empty() => {
                Err(Failed::Told("Error untarring cache: see above".into()))
            }
            Err(why @ (Failed::Told(_) | Failed::Damaged)) => {
                Err(Failed::Told(format!("Error untarring cache: {why}")))
            }
            other => other,
        }
    }
}

fn exists(key: &str, at: Timestamp, stream: &mut Stream) -> Result<(), Failed> {
    stream.note(&format!("Skipping cache generation, cache already exists for key: {key}"))?;
    Ok(stream.note(&format!("Found one created at {}", at.format("%Y-%m-%d %H:%M:%S +0000 UTC")))?)
}

/// Base64 with `/` replaced, as keys have it.
fn base64_sum(hex: &str) -> String {
    STANDARD.encode(hex::decode(hex).unwrap_or_default()).replace('/', "_")
}
