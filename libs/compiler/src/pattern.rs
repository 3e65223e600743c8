//! Regular expressions: Java's in filters and logic statements, RE2's in expressions. The whole text must match.

use std::cell::RefCell;
use std::collections::HashMap;

/// Steps of one match, memory of one pattern, length of one pattern (security §5.2).
const BACKTRACK_LIMIT: usize = 100_000;
const SIZE_LIMIT: usize = 2 << 20;
const MAX_PATTERN: usize = 1024;
/// After this many matches that took too long no further pattern is tried.
const MAX_SLOW: usize = 3;

/// The compiled patterns of one compile: the same filter stands on many jobs.
#[derive(Default)]
pub(crate) struct Patterns {
    java: RefCell<HashMap<String, Result<fancy_regex::Regex, String>>>,
    linear: RefCell<HashMap<String, Result<regex::Regex, String>>>,
    slow: RefCell<usize>,
}

impl Patterns {
    /// Whether `pattern` is well formed.
    pub fn check(&self, pattern: &str) -> Result<(), String> {
        self.with_java(pattern, |_| Ok(()))
    }

    /// Whether all of `text` matches a pattern of Java.
    pub fn matches(&self, pattern: &str, text: &str) -> Result<bool, String> {
        if *self.slow.borrow() >= MAX_SLOW {
            return Err("other patterns have taken all the time that is given to patterns".into());
        }
        self.with_java(pattern, |regex| {
            regex.is_match(text).map_err(|error| {
                *self.slow.borrow_mut() += 1;
                format!("the pattern `{pattern}` takes more than {BACKTRACK_LIMIT} steps: {error}")
            })
        })
    }

    fn with_java<T>(
        &self,
        pattern: &str,
        then: impl FnOnce(&fancy_regex::Regex) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut known = self.java.borrow_mut();
        if !known.contains_key(pattern) {
            known.insert(pattern.to_owned(), build_java(pattern));
        }
        match &known[pattern] {
            Ok(regex) => then(regex),
            Err(message) => Err(message.clone()),
        }
    }

    /// Whether all of `text` matches a pattern of RE2, in a time that grows with the text alone.
    pub fn matches_linear(&self, pattern: &str, text: &str) -> Result<bool, String> {
        let mut known = self.linear.borrow_mut();
        if !known.contains_key(pattern) {
            known.insert(pattern.to_owned(), build_linear(pattern));
        }
        known[pattern].as_ref().map(|regex| regex.is_match(text)).map_err(Clone::clone)
    }
}

fn build_linear(pattern: &str) -> Result<regex::Regex, String> {
    let bad = |error: &dyn std::fmt::Display| {
        format!("the pattern `{pattern}` is not a regular expression: {error}")
    };
    // On its own first: `a)|(b` must not become well formed through the group around it.
    let build = |text: &str| regex::RegexBuilder::new(text).size_limit(SIZE_LIMIT).build();
    build(pattern).map_err(|error| bad(&error))?;
    build(&format!("\\A(?:{pattern})\\z")).map_err(|error| bad(&error))
}

fn build_java(pattern: &str) -> Result<fancy_regex::Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!(
            "the pattern is {} bytes long; at most {MAX_PATTERN} are accepted",
            pattern.len()
        ));
    }
    let translated = from_java(pattern);
    let build = |text: &str| {
        let mut builder = fancy_regex::RegexBuilder::new(text);
        builder.backtrack_limit(BACKTRACK_LIMIT).delegate_size_limit(SIZE_LIMIT);
        builder
            .build()
            .map_err(|error| format!("the pattern `{pattern}` is not a regular expression: {error}"))
    };
    build(&translated)?;
    build(&format!("\\A(?:{translated})\\z"))
}

/// What Java writes differently: `\Q…\E`, classes that mean ASCII alone, `\h`, `\Z`.
fn from_java(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let (mut rest, mut in_class) = (pattern, 0usize);
    while let Some(c) = rest.chars().next() {
        let escaped = (c == '\\').then(|| rest[1..].chars().next()).flatten();
        let Some(escaped) = escaped else {
            match c {
                '[' => in_class += 1,
                ']' => in_class = in_class.saturating_sub(1),
                _ => {}
            }
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        rest = &rest[1 + escaped.len_utf8()..];
        let (members, inverted) = match escaped {
            'Q' => {
                let end = rest.find("\\E");
                out.push_str(&regex::escape(&rest[..end.unwrap_or(rest.len())]));
                rest = end.map_or("", |end| &rest[end + 2..]);
                continue;
            }
            'Z' if in_class == 0 => {
                out.push_str("(?=\\n?\\z)");
                continue;
            }
            'd' => ("0-9", false),
            'D' => ("0-9", true),
            'w' => ("a-zA-Z0-9_", false),
            'W' => ("a-zA-Z0-9_", true),
            's' => (" \\t\\n\\x0B\\f\\r", false),
            'S' => (" \\t\\n\\x0B\\f\\r", true),
            'h' => (" \\t\\xA0", false),
            'H' => (" \\t\\xA0", true),
            other => {
                out.push('\\');
                out.push(other);
                continue;
            }
        };
        match (inverted, in_class > 0) {
            (false, true) => out.push_str(members),
            (false, false) => out.extend(["[", members, "]"]),
            (true, _) => out.extend(["[^", members, "]"]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small patterns that would take much memory, stack or time.
    #[test]
    fn bounded() {
        let nested = format!("{}a{}", "(".repeat(500), ")".repeat(500));
        let looks = format!("{}a{}", "(?=".repeat(240), ")".repeat(240));
        let patterns = [
            nested.as_str(),
            looks.as_str(),
            "((a{500}){500}){500}",
            "((a{500}){500}){500}\\1",
            "(a+)+\\1(?=b)c",
            "(?:a*)*(?!x)$b",
        ];
        for pattern in patterns {
            // Any answer will do, but there must be one.
            let _ = Patterns::default().matches(pattern, &"a".repeat(200));
        }
        let long = "a".repeat(MAX_PATTERN + 1);
        assert!(Patterns::default().matches(&long, "a").expect_err("long").contains("1024"));
    }

    #[test]
    fn what_takes_too_long_is_not_tried_for_ever() {
        let patterns = Patterns::default();
        let text = "a".repeat(60);
        for number in 0..MAX_SLOW {
            let pattern = format!("(?=b?)(a|aa)+(?<!x)b{{{}}}", number + 1);
            assert!(patterns.matches(&pattern, &text).expect_err("slow").contains("steps"));
        }
        assert!(patterns.matches("a*", &text).expect_err("no more").contains("other patterns"));
    }

    #[test]
    fn whole_text() {
        let patterns = Patterns::default();
        let cases = [
            ("rel", "rel-1", false),
            ("rel.*", "rel-1", true),
            ("^rel.*$", "rel-1", true),
            ("(?!main).*", "main", false),
            ("(?i)MAIN", "main", true),
            ("a++b", "aab", true),
            ("\\Qv1.0\\E.*", "v1.0-rc", true),
            ("\\Qv1.0\\E.*", "v1x0-rc", false),
            ("v\\d+", "v12", true),
            ("v\\d+", "v१", false),
            ("[\\w-]+", "a-b_c", true),
            ("\\w+", "é", false),
            ("[^\\d]+", "ab", true),
            ("\\S+\\Z", "ab", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(patterns.matches(pattern, text), Ok(expected), "{pattern} {text}");
        }
        assert!(patterns.matches("a)|(b", "b").is_err());
        assert!(patterns.matches("(", "b").is_err());
        assert_eq!(patterns.matches_linear("/?fo+", "foo"), Ok(true));
        assert_eq!(patterns.matches_linear("fo", "foo"), Ok(false));
        assert!(patterns.matches_linear("(?=a)", "a").is_err());
    }
}
