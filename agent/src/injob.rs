//! The command that steps find as `circleci`, `circleci-agent` and `gantry-agent` (execution §20).

pub(crate) mod tests;

use crate::socket::{self, Ask};
use agent_api::MintToken;
use serde_json::Value;
use std::{
    io::{Read, Write},
    path::PathBuf,
};

/// Runs a command line; answers the exit code.
pub fn run(words: &[&str]) -> i32 {
    match words {
        ["step" | "task", "halt"] => halt(),
        ["--version" | "version"] => say(concat!("gantry-runner ", env!("CARGO_PKG_VERSION"), "\n")),
        ["--version", "--short"] => say(concat!(env!("CARGO_PKG_VERSION"), "\n")),
        ["tests", rest @ ..] => tests::run(rest),
        ["env", "subst"] => {
            let mut text = String::new();
            match std::io::stdin().read_to_string(&mut text) {
                Ok(_) => say(&substitute(&text)),
                Err(e) => fail(&e.to_string()),
            }
        }
        ["env", "subst", text] => say(&substitute(text)),
        ["mask", "add"] => {
            let mut value = String::new();
            match std::io::stdin().read_to_string(&mut value) {
                Ok(_) => mask(value.strip_suffix('\n').unwrap_or(&value)),
                Err(e) => fail(&e.to_string()),
            }
        }
        ["mask", "add", value] => mask(value),
        ["run", "oidc", "get", rest @ ..] => match wanted_token(rest) {
            Ok(wanted) => match socket::ask(&Ask::Mint(wanted)) {
                Ok(token) => say(&format!("{token}\n")),
                Err(e) => fail(&e),
            },
            Err(e) => {
                eprintln!("{e}");
                2
            }
        },
        ["run", "release", verb @ ("plan" | "update" | "log"), ..] => {
            eprintln!("run release {verb}: deploy markers are not kept here; nothing is done");
            0
        }
        _ => {
            eprintln!(
                "usage: circleci step halt | tests glob|split|run | env subst [TEXT] | mask add [VALUE] | \
                 run oidc get --claims JSON [--root-issuer] | --version [--short]"
            );
            2
        }
    }
}

/// Has a value masked in all output from here on. From standard input it is in no list of processes.
fn mask(value: &str) -> i32 {
    match socket::ask(&Ask::Mask(value.to_owned())) {
        Ok(_) => 0,
        Err(e) => fail(&e),
    }
}

/// `--claims '{"aud": "x"}'` and `--root-issuer` (execution §21).
fn wanted_token(words: &[&str]) -> Result<MintToken, String> {
    let mut wanted = MintToken::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let claims = match (*word, word.split_once('=')) {
            ("--root-issuer", _) => {
                wanted.root_issuer = true;
                continue;
            }
            ("--claims", _) => words.next().copied().ok_or("--claims needs a JSON object")?,
            (_, Some(("--claims", claims))) => claims,
            (other, _) => return Err(format!("{other} is not known; --claims JSON and --root-issuer are")),
        };
        wanted.audience = audience(claims)?;
    }
    Ok(wanted)
}

fn audience(claims: &str) -> Result<Vec<String>, String> {
    let wrong = "--claims is a JSON object with the member `aud`: a text, or a list of texts";
    let claims: Value = serde_json::from_str(claims).map_err(|e| format!("{wrong} ({e})"))?;
    let claims = claims.as_object().ok_or(wrong)?;
    if let Some(other) = claims.keys().find(|name| *name != "aud") {
        return Err(format!("the claim {other} cannot be chosen, only `aud` can"));
    }
    match claims.get("aud") {
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => {
            many.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(|| wrong.to_owned())).collect()
        }
        _ => Err(wrong.to_owned()),
    }
}

fn say(text: &str) -> i32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(e) => fail(&e.to_string()),
    }
}

fn fail(message: &str) -> i32 {
    eprintln!("{message}");
    1
}

fn halt() -> i32 {
    let Some(folder) = std::env::var_os("CIRCLE_INTERNAL_TASK_DATA") else {
        return fail("this is not a step of a job: CIRCLE_INTERNAL_TASK_DATA is not set");
    };
    match std::fs::write(PathBuf::from(folder).join("halt"), "") {
        Ok(()) => 0,
        Err(e) => fail(&format!("the job cannot be halted: {e}")),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// `$NAME`, `${NAME}` and what may follow the name in braces (execution §20): `-` and `=` before what stands in where it
/// is not set, `+` before what stands in where it is; with `:` an empty value counts as none. What stands in may hold
/// variables itself. `$$` is a dollar sign that names nothing.
fn substitute(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            let (name, left) = escaped.split_at(name_length(escaped));
            out.push('$');
            out.push_str(name);
            rest = left;
        } else if let Some((replaced, left)) = braced(after) {
            out.push_str(&replaced);
            rest = left;
        } else {
            let (name, left) = after.split_at(name_length(after));
            match name {
                "" => out.push('$'),
                name => out.push_str(&variable(name).unwrap_or_default()),
            }
            rest = left;
        }
    }
    out.push_str(rest);
    out
}

/// How many bytes at the beginning of a text are a name.
fn name_length(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// What a variable in braces becomes, and what follows it; `None`: it is none, and stays as it is.
fn braced(after: &str) -> Option<(String, &str)> {
    let body = after.strip_prefix('{')?;
    let (name, tail) = body.split_at(name_length(body));
    // The brace that closes it: what stands in may hold others.
    let mut depth = 1;
    let end = tail.char_indices().find_map(|(at, c)| {
        match c {
            '{' if tail[..at].ends_with('$') => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })?;
    let (operator, left) = (&tail[..end], &tail[end + 1..]);
    let found = variable(name);
    let (found, operator) = match operator.strip_prefix(':') {
        Some(operator) => (found.filter(|value| !value.is_empty()), operator),
        None => (found, operator),
    };
    let replaced = match (operator.chars().next(), operator.get(1..)) {
        _ if name.is_empty() => return None,
        (None, _) if tail.starts_with('}') => found.unwrap_or_default(),
        (Some('-' | '='), Some(other)) => found.unwrap_or_else(|| substitute(other)),
        (Some('+'), Some(other)) => found.map(|_| substitute(other)).unwrap_or_default(),
        _ => return None,
    };
    Some((replaced, left))
}
