//! Twenty and more ways in which people break a configuration, each with the line that is wrong then and the
//! words one of which names the fix.

use std::ops::RangeInclusive;

/// A configuration that was broken at one place.
pub struct Broken {
    pub text: String,
    /// 1-based; the finding must be on one of them.
    pub lines: RangeInclusive<usize>,
    /// The message or its hint must hold one of them.
    pub fix: Vec<String>,
}

/// A way to break a configuration. It is given the lines and the line to break.
pub struct Mutation {
    pub name: &'static str,
    apply: fn(&[&str], usize) -> Option<Broken>,
}

macro_rules! mutations {
    ($($name:literal => $apply:expr),* $(,)?) => {
        pub const MUTATIONS: &[Mutation] = &[$(Mutation { name: $name, apply: $apply }),*];
    };
}

mutations! {
    "misspelt key `steps`" => |l, n| misspelt(l, n, "steps:", "stpes:", "steps"),
    "misspelt key `docker`" => |l, n| misspelt(l, n, "docker:", "dokcer:", "docker"),
    "misspelt key `image`" => |l, n| misspelt(l, n, "- image:", "- iamge:", "image"),
    "misspelt step `run`" => |l, n| misspelt(l, n, "- run:", "- rnu:", "run"),
    "misspelt step `checkout`" => |l, n| misspelt(l, n, "- checkout", "- chekout", "checkout"),
    "misspelt key `command`" => |l, n| misspelt(l, n, "command:", "comand:", "command"),
    "misspelt key `requires`" => |l, n| misspelt(l, n, "requires:", "require:", "requires"),
    "misspelt value of `when`" => |l, n| misspelt(l, n, "when: always", "when: alway", "always"),
    "misspelt type" => |l, n| misspelt(l, n, "type: string", "type: strng", "string"),
    "unknown version" => |l, n| misspelt(l, n, "version: 2", "version: 3", "2.1"),
    "unknown job" => |l, n| in_section(l, n, "workflows").then(|| reference(l, n, 1))?,
    "unknown job in `requires`" => |l, n| below_requires(l, n).then(|| reference(l, n, 0))?,
    "unknown command" => |l, n| command(l, n),
    "unknown orb command" => |l, n| orb_command(l, n),
    "unknown executor" => |l, n| executor(l, n),
    "wrong type" => |l, n| wrong_type(l, n),
    "undeclared parameter" => |l, n| undeclared(l, n),
    "unclosed `<<`" => |l, n| unclosed(l, n),
    "unexpected argument" => |l, n| unexpected_argument(l, n),
    "keys of `run` not indented" => |l, n| not_indented(l, n),
    "a tab" => |l, n| tab(l, n),
    "missing colon" => |l, n| missing_colon(l, n),
    "unclosed quote" => |l, n| unclosed_quote(l, n),
    "unclosed bracket" => |l, n| unclosed_bracket(l, n),
    "a key twice" => |l, n| twice(l, n),
    "a circle of `requires`" => |l, n| circle(l, n),
}

impl Mutation {
    /// The configuration broken at its `n`th line (from 0), if that line can be broken in this way.
    pub fn at(&self, lines: &[&str], n: usize) -> Option<Broken> {
        (self.apply)(lines, n)
    }
}

pub fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn broken(lines: &[&str], n: usize, line: &str, fix: &[&str]) -> Option<Broken> {
    replaced(lines, n, &[line], n + 1..=n + 1, fix)
}

fn replaced(
    lines: &[&str],
    n: usize,
    new: &[&str],
    at: RangeInclusive<usize>,
    fix: &[&str],
) -> Option<Broken> {
    let mut all: Vec<&str> = lines.to_vec();
    all.splice(n..=n, new.iter().copied());
    let fix = fix.iter().map(|word| (*word).to_owned()).collect();
    Some(Broken { text: all.join("\n") + "\n", lines: at, fix })
}

fn misspelt(lines: &[&str], n: usize, from: &str, to: &str, fix: &str) -> Option<Broken> {
    let line = lines[n];
    let rest = line.trim_start().strip_prefix(from)?;
    // `checkoutx` is another word.
    if !from.ends_with([':', '2']) && !rest.trim().is_empty() {
        return None;
    }
    if from == "requires:" && !in_section(lines, n, "workflows") {
        return None;
    }
    broken(lines, n, &line.replacen(from, to, 1), &[fix])
}

/// The key of the top level that a line belongs to.
fn section<'l>(lines: &[&'l str], n: usize) -> &'l str {
    let key = lines[..=n].iter().rev().find(|l| !l.starts_with([' ', '#', '-', '\t']) && l.contains(':'));
    key.map_or("", |line| line.split(':').next().unwrap_or(""))
}

fn in_section(lines: &[&str], n: usize, name: &str) -> bool {
    section(lines, n) == name
}

/// The nearest line above that is less indented.
fn parent(lines: &[&str], n: usize) -> Option<usize> {
    let own = indent(lines[n]);
    (0..n).rev().find(|i| {
        let line = lines[*i].trim();
        let above = indent(lines[*i]) < own
            || (lines[n].trim_start().starts_with("- ")
                && indent(lines[*i]) == own
                && line.ends_with(':')
                && !line.starts_with("- "));
        !line.is_empty() && !line.starts_with('#') && above
    })
}

/// `- name` or `- name:` becomes another name; `depth`: whether it must stand below `jobs:`.
fn reference(lines: &[&str], n: usize, depth: usize) -> Option<Broken> {
    let line = lines[n];
    let item = line.trim_start().strip_prefix("- ")?;
    let name = item.trim_end().trim_end_matches(':').trim_end();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
        return None;
    }
    let above = lines[parent(lines, n)?].trim();
    if depth == 1 && above != "jobs:" {
        return None;
    }
    // An approval may have any name.
    let approval = |l: &&str| l.contains("type: approval");
    if depth == 1 && lines[n + 1..].iter().take_while(|l| indent(l) > indent(line)).any(approval) {
        return None;
    }
    broken(lines, n, &line.replacen(name, &format!("{name}x"), 1), &[&format!("`{name}`")])
}

fn below_requires(lines: &[&str], n: usize) -> bool {
    parent(lines, n).is_some_and(|above| lines[above].trim() == "requires:")
}

fn names_of<'l>(lines: &[&'l str], top: &str) -> Vec<&'l str> {
    let start = lines.iter().position(|line| line.trim_end() == format!("{top}:"));
    let Some(start) = start else { return Vec::new() };
    let body = lines[start + 1..].iter().take_while(|l| l.is_empty() || l.starts_with([' ', '#']));
    let body: Vec<&str> = body.copied().collect();
    let level =
        body.iter().filter(|l| !l.trim().is_empty() && !l.trim().starts_with('#')).map(|l| indent(l)).min();
    let own = body.iter().filter(|l| Some(indent(l)) == level && !l.trim().starts_with('#'));
    own.filter_map(|l| l.trim().strip_suffix(':')).collect()
}

fn command(lines: &[&str], n: usize) -> Option<Broken> {
    let item = lines[n].trim_start().strip_prefix("- ")?.trim_end().trim_end_matches(':');
    if lines[parent(lines, n)?].trim() != "steps:" || !names_of(lines, "commands").contains(&item) {
        return None;
    }
    broken(lines, n, &lines[n].replacen(item, &format!("{item}x"), 1), &[&format!("`{item}`")])
}

fn orb_command(lines: &[&str], n: usize) -> Option<Broken> {
    let item = lines[n].trim_start().strip_prefix("- ")?.trim_end().trim_end_matches(':');
    let (alias, name) = item.split_once('/')?;
    let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if !plain(alias) || !plain(name) || lines[parent(lines, n)?].trim() != "steps:" {
        return None;
    }
    broken(
        lines,
        n,
        &lines[n].replacen(item, &format!("{item}x"), 1),
        &[&format!("`{name}`"), &format!("`{item}`")],
    )
}

fn executor(lines: &[&str], n: usize) -> Option<Broken> {
    let name = lines[n].trim().strip_prefix("executor: ")?;
    if !names_of(lines, "executors").contains(&name) || !in_section(lines, n, "jobs") {
        return None;
    }
    broken(lines, n, &format!("{}x", lines[n]), &[&format!("`{name}`")])
}

/// A key of a job gets a value of another type.
fn wrong_type(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    if line.trim() != "steps:"
        || !in_section(lines, n, "jobs")
        || lines[parent(lines, n)?].trim().starts_with('-')
    {
        return None;
    }
    // Only below a job, which stands below `jobs:`.
    let job = parent(lines, n)?;
    if lines[parent(lines, job)?].trim() != "jobs:" {
        return None;
    }
    let new = format!("{}parallelism: many", " ".repeat(indent(line)));
    replaced(lines, n, &[&new, line], n + 1..=n + 1, &["integer"])
}

fn undeclared(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    let start = line.find("<< parameters.").or_else(|| line.find("<<parameters."))?;
    let name_at = start + line[start..].find('.')? + 1;
    let name: String =
        line[name_at..].chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).collect();
    let end = name_at + name.len();
    broken(lines, n, &format!("{}q{}", &line[..end], &line[end..]), &[&format!("`{name}`"), "declare"])
}

fn unclosed(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    let start = line.find("<< parameters.").or_else(|| line.find("<< pipeline."))?;
    let close = start + line[start..].find(">>")?;
    if line[close + 2..].contains(">>") {
        return None;
    }
    broken(lines, n, &format!("{}{}", &line[..close], &line[close + 2..]), &[">>"])
}

fn unexpected_argument(lines: &[&str], n: usize) -> Option<Broken> {
    let item = lines[n].trim_start().strip_prefix("- ")?.trim_end().strip_suffix(':')?;
    if lines[parent(lines, n)?].trim() != "steps:" || !names_of(lines, "commands").contains(&item) {
        return None;
    }
    let next = lines.get(n + 1)?;
    if indent(next) <= indent(lines[n]) + 2 {
        return None;
    }
    let new = format!("{}surprise: 1", " ".repeat(indent(next)));
    replaced(lines, n, &[lines[n], &new], n + 2..=n + 2, &["parameter", "takes", "argument"])
}

fn not_indented(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    if line.trim() != "- run:" {
        return None;
    }
    let column = indent(line) + 2;
    let count = lines[n + 1..].iter().take_while(|l| indent(l) > column || l.trim().is_empty()).count();
    let inner = &lines[n + 1..n + 1 + count];
    let level = indent(inner.iter().find(|l| !l.trim().is_empty())?);
    if count == 0 || inner.iter().any(|l| l.trim().starts_with('#')) {
        return None;
    }
    let moved: Vec<String> =
        inner.iter().map(|l| l.get(level - column..).unwrap_or_default().to_owned()).collect();
    let mut all: Vec<String> = lines[..=n].iter().map(|l| (*l).to_owned()).collect();
    all.extend(moved);
    all.extend(lines[n + 1 + count..].iter().map(|l| (*l).to_owned()));
    let fix = vec!["indent".to_owned()];
    Some(Broken { text: all.join("\n") + "\n", lines: n + 1..=n + 1 + count, fix })
}

fn tab(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    let key = line.trim().ends_with(':') && !line.trim().starts_with('-');
    (indent(line) >= 4 && key).then(|| broken(lines, n, &format!("\t\t{}", line.trim_start()), &["tab"]))?
}

fn missing_colon(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    let word = line.trim().strip_suffix(':')?;
    let nested =
        lines.get(n + 1).is_some_and(|next| indent(next) > indent(line) || next.trim().starts_with("- "));
    if word.starts_with('-')
        || !matches!(word, "steps" | "docker" | "environment" | "jobs" | "paths" | "branches")
        || !nested
    {
        return None;
    }
    broken(lines, n, line.trim_end().strip_suffix(':')?, &[":", "colon"])
}

fn unclosed_quote(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    let value = line.split_once(": ")?.1.trim();
    if !(value.len() > 2 && value.starts_with('"') && value.ends_with('"') && value.matches('"').count() == 2)
    {
        return None;
    }
    broken(lines, n, line.trim_end().strip_suffix('"')?, &["quote", "\""])
}

fn unclosed_bracket(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n].trim_end();
    let open = line.find(": [")?;
    if !line.ends_with(']') || line[open + 3..].contains('[') || line.contains('#') {
        return None;
    }
    broken(lines, n, line.strip_suffix(']')?, &["]", "bracket"])
}

fn twice(lines: &[&str], n: usize) -> Option<Broken> {
    let line = lines[n];
    let (key, value) = line.trim().split_once(": ")?;
    let known = ["working_directory", "resource_class", "command", "name", "path", "key", "type", "default"];
    let simple = value.chars().all(|c| c.is_ascii_alphanumeric() || " ._~/-".contains(c));
    if !known.contains(&key) || !simple {
        return None;
    }
    replaced(lines, n, &[line, line], n + 1..=n + 2, &["twice"])
}

/// A job without options gets a requirement on one that requires it.
fn circle(lines: &[&str], n: usize) -> Option<Broken> {
    let name = lines[n].trim_start().strip_prefix("- ")?.trim_end();
    if !in_section(lines, n, "workflows") || lines[parent(lines, n)?].trim() != "jobs:" || name.ends_with(':')
    {
        return None;
    }
    let workflow = parent(lines, parent(lines, n)?)?;
    let last = (n + 1..lines.len())
        .find(|i| !lines[*i].trim().is_empty() && indent(lines[*i]) <= indent(lines[workflow]))
        .unwrap_or(lines.len());
    let dependent = (n + 1..last).find(|i| {
        let item = lines[*i].trim();
        item == format!("- {name}") && below_requires(lines, *i) || item == format!("requires: [{name}]")
    })?;
    let requires =
        if lines[dependent].trim().starts_with("requires") { dependent } else { parent(lines, dependent)? };
    let job = lines[parent(lines, requires)?].trim().strip_prefix("- ")?.strip_suffix(':')?;
    // With a name of its own it is required by that.
    if lines[n + 1..last].iter().any(|l| l.trim().starts_with("name:")) {
        return None;
    }
    let pad = " ".repeat(indent(lines[n]));
    let new = format!("{pad}    requires: [{job}]");
    let first = format!("{}:", lines[n].trim_end());
    replaced(lines, n, &[&first, &new], n + 1..=last + 1, &["circle", "each other"])
}
