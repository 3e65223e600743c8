//! The command that steps find as `circleci`, `circleci-agent` and `gantry-agent` (execution §20).

pub(crate) mod tests;

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
        _ => {
            eprintln!(
                "usage: circleci step halt | tests glob|split|run | env subst [TEXT] | --version [--short]"
            );
            2
        }
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
