//! Names in spans.

use std::{borrow::Cow, fmt};

/// Longest name in characters.
const LONGEST: usize = 128;

/// A name of ours, or one that people chose for a project, a workflow, a job or a step: one line, and short. Never what
/// they wrote to be executed, and nothing of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Cow<'static, str>);

impl Name {
    /// What people called something.
    pub fn chosen(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Self(Cow::Owned(line.chars().take(LONGEST).map(shown).collect()))
    }

    /// A word of ours, and what people called the thing.
    pub fn of(what: &'static str, chosen: &str) -> Self {
        Self(Cow::Owned(format!("{what} {}", Self::chosen(chosen))))
    }

    /// A step, by what people called it. One that nobody named is called by the first line of its command, and that is
    /// not for traces: then by its number.
    pub fn of_step(number: u32, called: &str, command: Option<&str>) -> Self {
        let called = called.trim_end_matches('…').trim();
        let command = command.unwrap_or_default();
        if called.is_empty() || command.lines().any(|line| line.trim().starts_with(called)) {
            return Self(Cow::Owned(format!("step {number}")));
        }
        Self::of("step", called)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_its_name_and_never_its_command() {
        let called = |name, command| Name::of_step(101, name, command).to_string();
        assert_eq!(called("Checkout code", Some("#!/bin/sh -e\ngit clone")), "step Checkout code");
        assert_eq!(called("Restore cache", None), "step Restore cache");
        let command = "#!/bin/bash -eo pipefail\n\n  curl -u user:word https://x\necho done";
        assert_eq!(called("curl -u user:word https://x", Some(command)), "step 101");
        assert_eq!(called("curl -u user:wo…", Some(command)), "step 101");
        assert_eq!(called("Upload", Some(command)), "step Upload");
        assert_eq!(called("", Some(command)), "step 101");
    }

    #[test]
    fn a_name_is_one_short_line() {
        assert_eq!(Name::chosen("Build it\nexport TOKEN=x").as_str(), "Build it");
        assert_eq!(Name::chosen("a\tb\u{1b}[1m").as_str(), "a\u{fffd}b\u{fffd}[1m");
        assert_eq!(Name::of("job", &"ü".repeat(500)).as_str().chars().count(), 4 + LONGEST);
    }
}
