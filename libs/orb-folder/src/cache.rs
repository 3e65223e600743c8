//! Orbs that were read from a server, kept on this machine. Texts lie under their digests, so that two servers
//! that have the same orb share it, and a damaged file is noticed.

use crate::digest;
use compiler::OrbText;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A folder of texts by their digests, and for each server what its versions mean.
#[derive(Clone, Debug)]
pub struct OrbCache {
    root: PathBuf,
}

impl OrbCache {
    /// The cache in this folder, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The text of a published version (`namespace/name@1.2.3`) of a server, if it is here and whole.
    pub fn get(&self, server: &str, exact: &str) -> Option<OrbText> {
        let known = fs::read_to_string(self.name(server, exact)).ok()?;
        let text = fs::read_to_string(self.text(&known)).ok()?;
        (digest(&text) == known).then(|| OrbText::new(exact, text, known))
    }

    /// Keeps the text of a published version: versions never change.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn put(&self, server: &str, exact: &str, text: &str) -> io::Result<OrbText> {
        let digest = digest(text);
        write(&self.text(&digest), text)?;
        write(&self.name(server, exact), &digest)?;
        Ok(OrbText::new(exact, text, digest))
    }

    /// A file that holds this text under a name that people know, for editors. It is not to be changed.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn file(&self, resolved: &str, text: &str) -> io::Result<PathBuf> {
        let digest = digest(text);
        let short = digest.trim_start_matches("sha256:").get(..12).unwrap_or_default();
        let path = self.root.join("shown").join(short).join(plain(resolved) + ".yml");
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            write(&path, text)?;
        }
        Ok(path)
    }

    fn text(&self, digest: &str) -> PathBuf {
        self.root.join("texts").join(plain(digest) + ".yml")
    }

    fn name(&self, server: &str, exact: &str) -> PathBuf {
        self.root.join("servers").join(plain(server)).join(plain(exact))
    }
}

/// As one part of a path.
fn plain(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' };
    text.chars().map(keep).collect::<String>().trim_start_matches('.').to_owned()
}

/// Writes a file whole or not at all: others may read it at this moment.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let part = folder.join(format!(".{}.part", std::process::id()));
    fs::write(&part, text)?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_and_damage_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = OrbCache::new(folder.path());
        assert!(cache.get("http://a", "ns/orb@1.0.0").is_none());
        let kept = cache.put("http://a", "ns/orb@1.0.0", "version: 2.1\n").expect("kept");
        let found = cache.get("http://a", "ns/orb@1.0.0").expect("found");
        assert_eq!(
            (&found.text, &found.digest, found.resolved.as_str()),
            (&kept.text, &kept.digest, "ns/orb@1.0.0")
        );
        assert!(cache.get("http://b", "ns/orb@1.0.0").is_none(), "another server may have another orb");
        fs::write(cache.text(&kept.digest), "version: 2.1").expect("damage");
        assert!(cache.get("http://a", "ns/orb@1.0.0").is_none());
        let shown = cache.file("ns/orb@1.0.0", "version: 2.1\n").expect("file");
        assert!(shown.ends_with("ns_orb@1.0.0.yml") && shown.is_file(), "{}", shown.display());
    }
}
