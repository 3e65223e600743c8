//! Names that match a pattern, part by part, so that only folders are read that can have one.

use globset::{GlobBuilder, GlobMatcher};
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// What a pattern may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// `*`, `?`, `[…]` and `\` (Go's `filepath.Glob`).
    Plain,
    /// Also `**` for any folders, and `{a,b}`.
    Doublestar,
}

/// Paths below `root` that match, relative to it and sorted. What does not exist matches nothing.
pub(crate) fn expand(root: &Path, pattern: &str, syntax: Syntax) -> Result<Vec<PathBuf>, String> {
    let alternatives = match syntax {
        Syntax::Plain => vec![pattern.to_owned()],
        Syntax::Doublestar => braces(pattern),
    };
    let mut found = Vec::new();
    for pattern in alternatives {
        let mut parts = Vec::new();
        let mut start = PathBuf::new();
        for part in Path::new(&pattern).components() {
            match part {
                Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
                Component::CurDir => {}
                // An absolute pattern, or one that leads up, is taken as it is.
                other => start.push(other),
            }
        }
        walk(root, &start, &parts, syntax, &mut found)?;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn matcher(part: &str, syntax: Syntax) -> Result<GlobMatcher, String> {
    let pattern = match syntax {
        Syntax::Plain => part.replace('{', "\\{").replace('}', "\\}"),
        Syntax::Doublestar => part.to_owned(),
    };
    let glob = GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build();
    Ok(glob.map_err(|e| format!("the pattern {part} cannot be read: {}", e.kind()))?.compile_matcher())
}

fn walk(
    root: &Path,
    at: &Path,
    parts: &[String],
    syntax: Syntax,
    found: &mut Vec<PathBuf>,
) -> Result<(), String> {
    let Some((part, rest)) = parts.split_first() else {
        if root.join(at).symlink_metadata().is_ok() {
            found.push(if at.as_os_str().is_empty() { PathBuf::from(".") } else { at.to_owned() });
        }
        return Ok(());
    };
    let any_depth = syntax == Syntax::Doublestar && part == "**";
    if !any_depth && !part.contains(['*', '?', '[', '\\', '{']) {
        return walk(root, &at.join(part), rest, syntax, found);
    }
    if any_depth {
        // No folder at all, too.
        walk(root, at, rest, syntax, found)?;
    }
    let matcher = matcher(if any_depth { "*" } else { part }, syntax)?;
    let Ok(entries) = fs::read_dir(root.join(at)) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !matcher.is_match(Path::new(&name)) {
            continue;
        }
        let inner = at.join(&name);
        // Links are not walked through at any depth: they may lead in circles.
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if any_depth && folder {
            walk(root, &inner, parts, syntax, found)?;
            if rest.is_empty() {
                found.push(inner);
            }
        } else if any_depth {
            if rest.is_empty() {
                found.push(inner);
            }
        } else {
            walk(root, &inner, rest, syntax, found)?;
        }
    }
    Ok(())
}

/// The patterns that a pattern with braces stands for.
fn braces(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
    let (mut depth, mut commas, mut close) = (0, vec![open], None);
    for (at, c) in pattern.char_indices().skip_while(|(at, _)| *at < open) {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => {
                close = Some(at);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 1 => commas.push(at),
            _ => {}
        }
    }
    let Some(close) = close else { return vec![pattern.to_owned()] };
    commas.push(close);
    let choices = commas.windows(2).map(|ends| &pattern[ends[0] + 1..ends[1]]);
    choices
        .flat_map(|choice| braces(&format!("{}{choice}{}", &pattern[..open], &pattern[close + 1..])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_their_kind_does() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["a.rs", "b.rb", ".hidden", "x/a.rs", "x/y/b.rs", "x/y/c.txt", "lit{eral}"] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink("..", folder.path().join("x/up")).unwrap();
        let found = |pattern: &str, syntax| {
            let found = expand(folder.path(), pattern, syntax).unwrap();
            found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        let star = |pattern| found(pattern, Syntax::Doublestar);
        let plain = |pattern| found(pattern, Syntax::Plain);
        assert_eq!(star("**/*.rs"), "a.rs x/a.rs x/y/b.rs");
        assert_eq!(star("*.{rs,rb}"), "a.rs b.rb");
        assert_eq!(star("{x/a,x/y/b}.rs"), "x/a.rs x/y/b.rs");
        assert_eq!(star("x/**"), "x x/a.rs x/up x/y x/y/b.rs x/y/c.txt");
        assert_eq!(star("[ab].r?"), "a.rs b.rb");
        assert_eq!(star("nothing*/here"), "");
        assert_eq!(plain("*.rs"), "a.rs");
        assert_eq!(plain("x/*"), "x/a.rs x/up x/y");
        assert_eq!(plain("lit{eral}"), "lit{eral}");
        assert_eq!(plain("lit{*}"), "lit{eral}");
        assert_eq!(plain("."), ".");
        assert_eq!(plain("./x/y/"), "x/y");
        assert_eq!(plain("missing"), "");
        assert!(expand(folder.path(), "[", Syntax::Plain).is_err());
    }
}
