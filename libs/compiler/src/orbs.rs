//! Where orbs come from: references to them, and the interface through which their sources are read.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A reference to an orb outside of the file (config-language §18.1).
///
/// ```
/// use gantry_compiler::{OrbRef, OrbVersion};
/// let reference: OrbRef = "circleci/node@5.1".parse().unwrap();
/// assert_eq!(reference.to_string(), "circleci/node@5.1");
/// assert!(matches!(reference, OrbRef::Registry { version: OrbVersion::Minor(5, 1), .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OrbRef {
    /// `namespace/name@version`.
    Registry {
        /// Namespace.
        namespace: String,
        /// Name in the namespace.
        name: String,
        /// Which of its versions.
        version: OrbVersion,
    },
    /// `https://host/path/orb.yml`.
    Url(String),
}

/// The part of a reference behind the `@`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OrbVersion {
    /// `1.2.3`: that one.
    Exact(u64, u64, u64),
    /// `1.2`: the highest `1.2.x`.
    Minor(u64, u64),
    /// `1`: the highest `1.x.y`.
    Major(u64),
    /// `volatile`: the highest of all.
    Volatile,
    /// `dev:tag`: may change at any time.
    Dev(String),
}

/// A published version: `MAJOR.MINOR.PATCH`.
pub type Published = (u64, u64, u64);

impl OrbVersion {
    /// The published version that is meant, of those that exist. None for a dev version.
    pub fn pick(&self, published: impl IntoIterator<Item = Published>) -> Option<Published> {
        let fits = |version: &Published| match self {
            Self::Exact(major, minor, patch) => *version == (*major, *minor, *patch),
            Self::Minor(major, minor) => (version.0, version.1) == (*major, *minor),
            Self::Major(major) => version.0 == *major,
            Self::Volatile => true,
            Self::Dev(_) => false,
        };
        published.into_iter().filter(fits).min_by_key(|version| Reverse(*version))
    }

    /// Whether what it means may change when something is published.
    pub fn is_open(&self) -> bool {
        !matches!(self, Self::Exact(..))
    }
}

impl fmt::Display for OrbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(major, minor, patch) => write!(f, "{major}.{minor}.{patch}"),
            Self::Minor(major, minor) => write!(f, "{major}.{minor}"),
            Self::Major(major) => write!(f, "{major}"),
            Self::Volatile => f.write_str("volatile"),
            Self::Dev(tag) => write!(f, "dev:{tag}"),
        }
    }
}

impl FromStr for OrbVersion {
    type Err = BadOrbRef;

    fn from_str(text: &str) -> Result<Self, BadOrbRef> {
        if text == "volatile" {
            return Ok(Self::Volatile);
        }
        if let Some(tag) = text.strip_prefix("dev:") {
            let good = !tag.is_empty()
                && tag.len() <= 1023
                && !tag.chars().any(|c| c.is_whitespace() || c.is_control());
            return if good { Ok(Self::Dev(tag.to_owned())) } else { Err(BadOrbRef::Version) };
        }
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten().ok_or(BadOrbRef::Version)
        };
        let numbers = text.split('.').map(number).collect::<Result<Vec<u64>, _>>()?;
        match numbers[..] {
            [major] => Ok(Self::Major(major)),
            [major, minor] => Ok(Self::Minor(major, minor)),
            [major, minor, patch] => Ok(Self::Exact(major, minor, patch)),
            _ => Err(BadOrbRef::Version),
        }
    }
}

impl fmt::Display for OrbRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { namespace, name, version } => write!(f, "{namespace}/{name}@{version}"),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Why a text is no reference to an orb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOrbRef {
    /// No `@`.
    #[error("it names no version: write `namespace/orb@1.2.3`")]
    NoVersion,
    /// Neither a number, `volatile` nor `dev:…`.
    #[error("the version must be `1`, `1.2`, `1.2.3`, `volatile` or `dev:name`")]
    Version,
    /// No `namespace/orb`.
    #[error("the name must be `namespace/orb`: lower-case letters, digits, `-` and `_`")]
    Name,
    /// `http:` and others.
    #[error("an orb can only be read from an `https` address")]
    Scheme,
}

impl FromStr for OrbRef {
    type Err = BadOrbRef;

    fn from_str(text: &str) -> Result<Self, BadOrbRef> {
        if let Some((scheme, rest)) = text.split_once("://") {
            let good = scheme == "https" && !rest.is_empty() && !text.contains(char::is_whitespace);
            return if good { Ok(Self::Url(text.to_owned())) } else { Err(BadOrbRef::Scheme) };
        }
        let (path, version) = text.split_once('@').ok_or(BadOrbRef::NoVersion)?;
        let (namespace, name) = path.split_once('/').ok_or(BadOrbRef::Name)?;
        let good = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
        };
        if !good(namespace) || !good(name) {
            return Err(BadOrbRef::Name);
        }
        let version = version.parse()?;
        Ok(Self::Registry { namespace: namespace.to_owned(), name: name.to_owned(), version })
    }
}

/// The source of an orb.
#[derive(Clone, Debug)]
pub struct OrbText {
    /// What the reference means now, as people read it: `circleci/node@5.1.1`, or the address.
    pub resolved: String,
    /// The packed YAML.
    pub text: Arc<str>,
    /// Tells this text from all others, for example its SHA-256. Equal digests are compiled once.
    pub digest: String,
    /// The orb's own references, frozen when it was published: as written → exact. What is not listed is
    /// looked up as written.
    pub pins: BTreeMap<String, String>,
}

impl OrbText {
    /// A text without frozen references.
    pub fn new(resolved: impl Into<String>, text: impl Into<Arc<str>>, digest: impl Into<String>) -> Self {
        Self { resolved: resolved.into(), text: text.into(), digest: digest.into(), pins: BTreeMap::new() }
    }
}

/// Why an orb's source cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrbError {
    /// There is no such orb or version. The text, if any, says what there is instead.
    #[error("there is no such orb or version")]
    NotFound(Option<String>),
    /// There is one that may not be used; the text says why.
    #[error("{0}")]
    Forbidden(String),
    /// The source failed; the text says how, for people.
    #[error("{0}")]
    Unavailable(String),
}

/// Reads orbs. Synchronous: an implementation over a network or a store waits, away from async threads.
pub trait OrbSource {
    /// The source that `reference` means now.
    ///
    /// # Errors
    /// See [`OrbError`].
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError>;
}

/// No orbs at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOrbs;

impl OrbSource for NoOrbs {
    fn fetch(&self, _: &OrbRef) -> Result<OrbText, OrbError> {
        Err(OrbError::NotFound(None))
    }
}

/// An orb that was used in a compile: what a lock file keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedOrb {
    /// As written.
    pub reference: String,
    /// As fetched.
    pub resolved: String,
    /// Of the text.
    pub digest: String,
    /// Whether the file itself imports it, not one of its orbs.
    pub direct: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let good = [
            "circleci/node@5",
            "circleci/node@5.1",
            "a/b@5.1.0",
            "a/b@volatile",
            "a/b@dev:first",
            "a-1/b_2@dev:Some/Branch.1",
            "https://example.com/orb.yml",
        ];
        for text in good {
            assert_eq!(text.parse::<OrbRef>().expect(text).to_string(), text);
        }
        let bad = [
            ("a/b", BadOrbRef::NoVersion),
            ("ab@1", BadOrbRef::Name),
            ("A/b@1", BadOrbRef::Name),
            ("a/@1", BadOrbRef::Name),
            ("a/b@", BadOrbRef::Version),
            ("a/b@1.", BadOrbRef::Version),
            ("a/b@1.2.3.4", BadOrbRef::Version),
            ("a/b@v1", BadOrbRef::Version),
            ("a/b@+1", BadOrbRef::Version),
            ("a/b@dev:", BadOrbRef::Version),
            ("a/b@99999999999999999999", BadOrbRef::Version),
            ("http://example.com/orb.yml", BadOrbRef::Scheme),
        ];
        for (text, problem) in bad {
            assert_eq!(text.parse::<OrbRef>(), Err(problem), "{text}");
        }
    }

    #[test]
    fn versions() {
        let published = [(1, 2, 3), (1, 10, 0), (1, 2, 12), (2, 0, 0)];
        let cases = [
            ("1", Some((1, 10, 0))),
            ("1.2", Some((1, 2, 12))),
            ("1.2.3", Some((1, 2, 3))),
            ("1.3", None),
            ("volatile", Some((2, 0, 0))),
            ("dev:first", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<OrbVersion>().expect(text).pick(published), expected, "{text}");
        }
    }
}
