//! Cache keys: Go's `text/template`, as far as keys use it (execution §15.1). The texts of errors are Go's.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// What a template is filled with.
pub(super) struct Facts<'a> {
    pub(super) branch: &'a str,
    pub(super) build_num: i64,
    pub(super) revision: &'a str,
    pub(super) checkout_key: &'a str,
    /// What the agent was given: built-in variables, contexts and project variables, as they may stand in a key.
    pub(super) environment: &'a BTreeMap<String, String>,
    /// Seconds since 1970.
    pub(super) epoch: i64,
    pub(super) arch: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(String),
    Checksum { file: String, column: usize, written: String },
    Epoch,
    Arch,
}

/// A key that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

impl Template {
    /// Reads a key.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find("{{") {
            let mut literal = rest[..open].to_owned();
            let inner = &rest[open + 2..];
            let close = inner.find("}}").ok_or_else(|| failed("unclosed action"))?;
            let mut action = &inner[..close];
            rest = &inner[close + 2..];
            if let Some(trimmed) = action.strip_prefix('-').filter(|rest| rest.starts_with([' ', '\t', '\n']))
            {
                action = trimmed;
                literal.truncate(literal.trim_end().len());
            }
            if let Some(trimmed) = action.strip_suffix('-').filter(|rest| rest.ends_with([' ', '\t', '\n'])) {
                action = trimmed;
                rest = rest.trim_start();
            }
            if !literal.is_empty() {
                parts.push(Part::Text(literal));
            }
            let expression = action.trim();
            let column = expression.as_ptr() as usize - text.as_ptr() as usize;
            parts.push(read(expression, column)?);
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Files whose sums it needs, as written.
    pub(super) fn files(&self) -> BTreeSet<String> {
        let files = self.0.iter().filter_map(|part| match part {
            Part::Checksum { file, .. } => Some(file.clone()),
            _ => None,
        });
        files.collect()
    }

    /// Variables that it names.
    pub(super) fn variables(&self) -> BTreeSet<&str> {
        let names = self.0.iter().filter_map(|part| match part {
            Part::Field(name) => name.strip_prefix("Environment."),
            _ => None,
        });
        names.collect()
    }

    /// Fills it in; `sums` has all of [`Template::files`].
    pub(super) fn expand(
        &self,
        facts: &Facts<'_>,
        sums: &BTreeMap<String, Result<String, String>>,
    ) -> Result<String, String> {
        let mut key = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::Epoch => key.push_str(&facts.epoch.to_string()),
                Part::Arch => key.push_str(facts.arch),
                Part::Field(name) => match name.strip_prefix("Environment.") {
                    Some(name) => {
                        key.push_str(facts.environment.get(name).map_or("<no value>", String::as_str));
                    }
                    None => key.push_str(&match name.as_str() {
                        "Branch" => facts.branch.to_owned(),
                        "BuildNum" => facts.build_num.to_string(),
                        "Revision" => facts.revision.to_owned(),
                        _ => facts.checkout_key.to_owned(),
                    }),
                },
                Part::Checksum { file, column, written } => match sums.get(file) {
                    Some(Ok(sum)) => key.push_str(sum),
                    Some(Err(why)) => {
                        return Err(format!(
                            "error computing cache key: template: cacheKey:1:{column}: executing \"cacheKey\" at \
                             <{written}>: error calling checksum: {why}"
                        ));
                    }
                    None => return Err(failed("a sum is missing")),
                },
            }
        }
        Ok(key)
    }
}

fn failed(why: &str) -> String {
    format!("error computing cache key: template: cacheKey:1: {why}")
}

fn read(expression: &str, column: usize) -> Result<Part, String> {
    const FIELDS: [&str; 4] = ["Branch", "BuildNum", "Revision", "CheckoutKey"];
    if let Some(field) = expression.strip_prefix('.') {
        let known = FIELDS.contains(&field)
            || field.strip_prefix("Environment.").is_some_and(|name| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            });
        return if known {
            Ok(Part::Field(field.to_owned()))
        } else {
            Err(format!(
                "error computing cache key: template: cacheKey:1:{column}: executing \"cacheKey\" at <.{field}>: \
                 can't evaluate field {field} in type cache.templateValues"
            ))
        };
    }
    let (name, argument) = expression.split_once([' ', '\t']).unwrap_or((expression, ""));
    let argument = argument.trim();
    match name {
        "epoch" if argument.is_empty() => Ok(Part::Epoch),
        "arch" if argument.is_empty() => Ok(Part::Arch),
        "checksum" => {
            let file = unquote(argument).ok_or_else(|| failed("checksum takes one file name in quotes"))?;
            Ok(Part::Checksum { file, column, written: expression.to_owned() })
        }
        "" => Err(failed("missing value for command")),
        _ => Err(failed(&format!("function {name:?} not defined"))),
    }
}

/// A text in double or back quotes.
fn unquote(text: &str) -> Option<String> {
    if let Some(raw) = text.strip_prefix('`') {
        return raw.strip_suffix('`').filter(|raw| !raw.contains('`')).map(str::to_owned);
    }
    serde_json::from_str(text).ok()
}

/// What stands in a key for a secret: keys are rows of a table and lines of an audit log. The same secret of the same
/// repository is the same text, so that a changed one makes another key.
pub(super) fn stand_in(repository: &str, name: &str, secret: &str) -> String {
    let sum = archive::sha256(format!("{repository}\0{name}\0{secret}").as_bytes());
    hex::encode(&sum[..8])
}

/// `~` and relative paths as the checksum function has them.
pub(super) fn place(file: &str, home: &std::path::Path, work: &std::path::Path) -> PathBuf {
    crate::environment::expand(file, home, work)
}

/// System and processor of this machine, which is also that of its containers: `linux-amd64-6_85`.
pub(super) fn arch() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |names: [&str; 2]| {
        let found = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then(|| value.trim().to_owned())
        });
        found.unwrap_or_else(|| "0".to_owned())
    };
    let (family, model) = (value(["cpu family", "CPU architecture"]), value(["model", "CPU part"]));
    format!("{}-{arch}-{family}_{model}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<String, String> {
        let environment = BTreeMap::from([("WORD".to_owned(), "word".to_owned())]);
        let facts = Facts {
            branch: "main",
            build_num: 7,
            revision: "0123",
            checkout_key: "key",
            environment: &environment,
            epoch: 1_700_000_000,
            arch: "linux-amd64-6_85",
        };
        let template = Template::parse(text)?;
        let sums = template.files().into_iter().map(|file| {
            let sum = match file.as_str() {
                "missing" => Err("open /w/missing: no such file or directory".to_owned()),
                other => Ok(format!("sum of {other}")),
            };
            (file, sum)
        });
        template.expand(&facts, &sums.collect())
    }

    #[test]
    fn keys_are_filled_in() {
        let ok = |text: &str| expand(text).unwrap();
        assert_eq!(ok("plain key"), "plain key");
        assert_eq!(ok("v1-{{ .Branch }}-{{.BuildNum}}-{{  .Revision  }}"), "v1-main-7-0123");
        assert_eq!(ok("{{ checksum \"a b.lock\" }}|{{ checksum `~/c` }}"), "sum of a b.lock|sum of ~/c");
        assert_eq!(ok("{{ .Environment.WORD }}-{{ .Environment.NONE }}"), "word-<no value>");
        assert_eq!(ok("{{ epoch }}-{{ arch }}-{{ .CheckoutKey }}"), "1700000000-linux-amd64-6_85-key");
        assert_eq!(ok("a  {{- epoch -}}  b"), "a1700000000b");
        assert_eq!(ok("{ {x} }}"), "{ {x} }}");
    }

    #[test]
    fn mistakes_are_told_as_go_tells_them() {
        let err = |text: &str| expand(text).unwrap_err();
        assert_eq!(
            err("key-{{ checksum \"missing\" }}"),
            "error computing cache key: template: cacheKey:1:7: executing \"cacheKey\" at <checksum \"missing\">: \
             error calling checksum: open /w/missing: no such file or directory"
        );
        assert!(err("{{ foo }}").ends_with("cacheKey:1: function \"foo\" not defined"));
        assert!(err("{{ .Foo }}").contains("can't evaluate field Foo"));
        assert!(err("{{ .Branch ").ends_with("unclosed action"));
        assert!(err("{{ }}").ends_with("missing value for command"));
        assert!(err("{{ checksum x }}").contains("in quotes"));
    }

    #[test]
    fn this_machine_has_an_arch() {
        let arch = arch();
        assert_eq!(arch.split('-').count(), 3, "{arch}");
        assert!(arch.starts_with("linux-") && arch.contains('_'), "{arch}");
    }
}
