//! A folder of YAML files as one file: `config pack` and `orb pack` (config-language §27).
//!
//! Pure: the caller reads the folder. Scripts that are included come through a function, so that nothing is
//! read that no file asks for.

use crate::diagnostics::{Diagnostic, Sink, Span};
use crate::yaml::{self, Entry, Map, Node, Value};
use crate::yaml_text;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a folder cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file is not YAML; the findings say where.
    #[error("{file} cannot be read as YAML")]
    Broken {
        /// Path below the root.
        file: String,
        /// What is wrong.
        findings: Vec<Diagnostic>,
    },
    /// A file holds a list or a text where a map is needed.
    #[error("{file} holds a {found}; a file of a packed folder holds a map")]
    NotAMap {
        /// Path below the root.
        file: String,
        /// Its type.
        found: &'static str,
    },
    /// An include stands beside other text, or there are two in one value.
    #[error(
        "{file}:{line}: `<<include(…)>>` must be the whole value; found {found}. Put the text around it into the included file"
    )]
    MixedInclude {
        /// Path below the root.
        file: String,
        /// 1-based.
        line: usize,
        /// How many includes stand in the value.
        found: usize,
    },
    /// An included file is not there.
    #[error(
        "{file}:{line}: the included file `{include}` cannot be read; its path starts at the folder that is packed"
    )]
    MissingInclude {
        /// Path below the root.
        file: String,
        /// 1-based.
        line: usize,
        /// The path as written.
        include: String,
    },
}

/// One YAML text of all `files` (path below the root, with `/`, to text). `include` gives the text of a
/// file that an `<<include(path)>>` names.
///
/// Files at the root are merged into the top level; `commands/build.yml` becomes `commands: {build: …}`;
/// deeper folders only organise; a file whose name starts with `@` is merged at the level of its folder.
///
/// # Errors
/// A file is no YAML map, or an include cannot be resolved. The first one in the order of paths is told.
pub fn pack(
    files: &BTreeMap<String, String>,
    include: &dyn Fn(&str) -> Option<String>,
) -> Result<String, PackError> {
    let mut root = Map::default();
    for (path, text) in files.iter().filter(|(path, _)| is_packed(path)) {
        let Some(map) = read(path, text, include)? else { continue };
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        match folder.split('/').next().filter(|section| !section.is_empty()) {
            None => merge(&mut root, map),
            Some(section) => {
                let entry = root.entry(section.into()).or_insert_with(|| entry(Map::default()));
                if !matches!(entry.value.value, Value::Map(_)) {
                    entry.value = Node::map(Span::default(), Map::default());
                }
                let Value::Map(members) = &mut entry.value.value else { continue };
                let members = Arc::make_mut(members);
                if stem.starts_with('@') {
                    merge(members, map);
                } else {
                    members.insert(stem.into(), self::entry(map));
                }
            }
        }
    }
    Ok(yaml_text::write(&Node::map(Span::default(), root), &yaml_text::Style::PACKED))
}

/// Whether a path takes part: YAML files, but none that is hidden.
pub fn is_packed(path: &str) -> bool {
    !path.split('/').any(|part| part.starts_with('.')) && (path.ends_with(".yml") || path.ends_with(".yaml"))
}

fn entry(map: Map) -> Entry {
    Entry { key: Span::default(), value: Node::map(Span::default(), map) }
}

/// Later files win, key by key.
fn merge(into: &mut Map, map: Map) {
    for (key, entry) in map {
        into.insert(key, entry);
    }
}

fn read(path: &str, text: &str, include: &dyn Fn(&str) -> Option<String>) -> Result<Option<Map>, PackError> {
    let mut sink = Sink::new(path, text);
    let Some(node) = yaml::read(&mut sink, 0) else {
        return Err(PackError::Broken { file: path.to_owned(), findings: sink.finish().0 });
    };
    let file = File { path, text, include };
    match file.resolved(&node)?.value {
        Value::Map(map) => Ok(Some(Arc::unwrap_or_clone(map))),
        Value::Null => Ok(None),
        _ => Err(PackError::NotAMap { file: path.to_owned(), found: node.kind() }),
    }
}

struct File<'f> {
    path: &'f str,
    text: &'f str,
    include: &'f dyn Fn(&str) -> Option<String>,
}

impl File<'_> {
    /// `node` with the texts of included files in place.
    fn resolved(&self, node: &Node) -> Result<Node, PackError> {
        let value = match &node.value {
            Value::Str(text) if text.contains("<<") => match self.included(text, node.span)? {
                Some(text) => Value::Str(text.into()),
                None => return Ok(node.clone()),
            },
            Value::Seq(items) => {
                Value::Seq(Arc::new(items.iter().map(|item| self.resolved(item)).collect::<Result<_, _>>()?))
            }
            Value::Map(map) => {
                let entries = map.iter().map(|(key, entry)| {
                    Ok((key.clone(), Entry { key: entry.key, value: self.resolved(&entry.value)? }))
                });
                Value::Map(Arc::new(entries.collect::<Result<_, _>>()?))
            }
            other => other.clone(),
        };
        Ok(Node { span: node.span, value })
    }

    fn included(&self, text: &str, span: Span) -> Result<Option<String>, PackError> {
        let names = includes(text);
        let line =
            || self.text.get(..span.start as usize).map_or(1, |before| before.matches('\n').count() + 1);
        let [name] = names.as_slice() else {
            return match names.len() {
                0 => Ok(None),
                found => Err(PackError::MixedInclude { file: self.path.to_owned(), line: line(), found }),
            };
        };
        let whole = text.trim();
        if !(whole.starts_with("<<") && whole.ends_with(">>") && whole.matches(">>").count() == 1) {
            return Err(PackError::MixedInclude { file: self.path.to_owned(), line: line(), found: 1 });
        }
        let missing =
            || PackError::MissingInclude { file: self.path.to_owned(), line: line(), include: name.clone() };
        let script = (self.include)(name).ok_or_else(missing)?;
        Ok(Some(script.replace("<<", "\\<<")))
    }
}

/// The paths of all `<<include(path)>>` of a text.
fn includes(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in text.split("<<").skip(1) {
        let Some((content, _)) = part.split_once(">>") else { continue };
        if let Some(name) = content.trim().strip_prefix("include(").and_then(|t| t.strip_suffix(')')) {
            names.push(name.trim().to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::{PackError, pack};
    use std::collections::BTreeMap;

    fn packed(files: &[(&str, &str)]) -> Result<String, PackError> {
        let files: BTreeMap<String, String> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        pack(&files, &|name| (name == "scripts/a.sh").then(|| "cat <<EOF\nhi\nEOF\n".to_owned()))
    }

    /// config-language §27
    #[test]
    fn folders_are_sections() {
        let text = packed(&[
            ("@orb.yml", "version: 2.1\ndescription: d\n"),
            ("commands/say.yml", "steps: [{run: {command: <<include(scripts/a.sh)>>, background: yes}}]\n"),
            ("jobs/deep/er/work.yaml", "machine: true\nsteps: [say]\n"),
            ("jobs/@more.yml", "other: {machine: true}\n"),
            ("jobs/notes.md", "nothing"),
            (".hidden/x.yml", "a: b"),
        ])
        .expect("packs");
        let expected = "commands:\n    say:\n        steps:\n            - run:\n                background: true\n                command: |\n                    cat \\<<EOF\n                    hi\n                    EOF\ndescription: d\njobs:\n    other:\n        machine: true\n    work:\n        machine: true\n        steps:\n            - say\nversion: 2.1\n";
        assert_eq!(text, expected);
    }

    /// config-language §27
    #[test]
    fn what_cannot_be_packed_is_named() {
        let cases = [
            ("a.yml", "- 1\n", "a.yml holds a list"),
            ("a.yml", "a: [\n", "a.yml cannot be read as YAML"),
            (
                "a.yml",
                "b: 1\na: x <<include(scripts/a.sh)>>\n",
                "a.yml:2: `<<include(…)>>` must be the whole value; found 1",
            ),
            ("a.yml", "a: <<include(scripts/a.sh)>><<include(scripts/a.sh)>>\n", "found 2"),
            ("a.yml", "a: <<include(scripts/b.sh)>>\n", "the included file `scripts/b.sh` cannot be read"),
        ];
        for (path, text, message) in cases {
            let error = packed(&[(path, text)]).expect_err(message).to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
