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
                Ok(_) => say(&substitute(&text, |name| std::env::var(name).ok())),
                Err(e) => fail(&e.to_string()),
            }
        }
        ["env", "subst", text] => say(&substitute(text, |name| std::env::var(name).ok())),
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

/// `$NAME`, `${NAME}` and the forms with a default: `:-` and `:=` for unset or empty, `-` and `=` for unset.
fn substitute(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts_name = |c: char| c.is_ascii_alphabetic() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(body) = after.strip_prefix('{')
            && let Some(end) = body.find('}')
            && body.starts_with(starts_name)
        {
            let inner = &body[..end];
            let (name, operator) = inner.split_at(inner.find(|c| !is_name(c)).unwrap_or(inner.len()));
            let found = value(name);
            let replaced = if let Some(default) = operator.strip_prefix(":-").or(operator.strip_prefix(":="))
            {
                Some(found.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned()))
            } else if let Some(default) = operator.strip_prefix('-').or(operator.strip_prefix('=')) {
                Some(found.unwrap_or_else(|| default.to_owned()))
            } else {
                operator.is_empty().then(|| found.unwrap_or_default())
            };
            if let Some(replaced) = replaced {
                out.push_str(&replaced);
                rest = &body[end + 1..];
                continue;
            }
        } else if after.starts_with(starts_name) {
            let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
            out.push_str(&value(&after[..end]).unwrap_or_default());
            rest = &after[end..];
            continue;
        }
        out.push('$');
        rest = after;
    }
    out.push_str(rest);
    out
}
