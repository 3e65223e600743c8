//! Expressions outside a configuration: what a context asks of the jobs that want to use it (security §4.2).

use crate::expression::{Val, evaluate};
use crate::values::is_known;

/// Whether the job is rerun with SSH, which is the one name that is no pipeline value (config-language §6.6).
const SSH: &str = "job.ssh.enabled";

/// Longest expression, in bytes.
pub const MAX_RESTRICTION: usize = 1024;

/// A pipeline value as an expression sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Text.
    Text(String),
}

/// Whether an expression holds for these values; a name of the language without a value is undefined.
///
/// # Errors
/// The expression is too long or cannot be read; the text says what is wrong and where.
pub fn restriction_holds(expression: &str, lookup: &dyn Fn(&str) -> Option<Fact>) -> Result<bool, String> {
    if expression.len() > MAX_RESTRICTION {
        return Err(format!("an expression has at most {MAX_RESTRICTION} bytes"));
    }
    let mut values = |name: &str| {
        let fact = lookup(name).map(|fact| match fact {
            Fact::Bool(value) => Val::Bool(value),
            Fact::Int(value) => Val::Int(value),
            Fact::Text(value) => Val::Str(value),
        });
        let no_ssh = || (name == SSH).then_some(Val::Bool(false));
        fact.or_else(no_ssh).or_else(|| is_known(name).then_some(Val::Undefined))
    };
    evaluate(expression, &mut values).map(|value| value.truthy()).map_err(|problem| problem.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(expression: &str) -> Result<bool, String> {
        restriction_holds(expression, &|name| match name {
            "pipeline.git.branch" => Some(Fact::Text("main".into())),
            "pipeline.number" => Some(Fact::Int(7)),
            "pipeline.git.branch.is_default" => Some(Fact::Bool(true)),
            _ => None,
        })
    }

    #[test]
    fn expressions_see_the_facts_and_nothing_else() {
        assert_eq!(holds("pipeline.git.branch == \"main\" and pipeline.number == 7"), Ok(true));
        assert_eq!(holds("pipeline.git.branch == \"dev\""), Ok(false));
        assert_eq!(holds("pipeline.git.branch.is_default"), Ok(true));
        assert_eq!(holds("pipeline.git.tag"), Ok(false));
        assert_eq!(holds("not job.ssh.enabled"), Ok(true));
        assert!(holds("pipeline.git.brnch").is_err());
        assert!(holds("pipeline.git.branch ==").is_err());
        assert!(holds(&format!("pipeline.number == {}", "1".repeat(MAX_RESTRICTION))).is_err());
    }
}
