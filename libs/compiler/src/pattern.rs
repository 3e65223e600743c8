//! Regular expressions of refs: the whole text must match, lookaround allowed, work bounded.

use fancy_regex::{Regex, RegexBuilder};

const BACKTRACK_LIMIT: usize = 200_000;
const SIZE_LIMIT: usize = 2 << 20;

fn build(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > 4096 {
        return Err("the pattern is longer than 4096 bytes".into());
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.backtrack_limit(BACKTRACK_LIMIT).delegate_size_limit(SIZE_LIMIT);
    builder.build().map_err(|error| format!("the pattern `{pattern}` is not a regular expression: {error}"))
}

/// Whether `pattern` is well formed.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    build(pattern).map(|_| ())
}

/// Whether all of `text` matches.
pub(crate) fn matches_whole(pattern: &str, text: &str) -> Result<bool, String> {
    // On its own first: `a)|(b` must not become well formed through the group around it.
    build(pattern)?;
    let whole = build(&format!("\\A(?:{pattern})\\z"))?;
    whole.is_match(text).map_err(|error| format!("the pattern `{pattern}` takes too long: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small patterns that would take much memory, stack or time.
    #[test]
    fn bounded() {
        let nested = format!("{}a{}", "(".repeat(1500), ")".repeat(1500));
        let looks = format!("{}a{}", "(?=".repeat(600), ")".repeat(600));
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
            let _ = matches_whole(pattern, &"a".repeat(200));
        }
    }

    #[test]
    fn whole_text() {
        assert_eq!(matches_whole("rel", "rel-1"), Ok(false));
        assert_eq!(matches_whole("rel.*", "rel-1"), Ok(true));
        assert_eq!(matches_whole("^rel.*$", "rel-1"), Ok(true));
        assert_eq!(matches_whole("(?!main).*", "main"), Ok(false));
        assert!(matches_whole("a)|(b", "b").is_err());
        assert!(matches_whole("(", "b").is_err());
    }
}
