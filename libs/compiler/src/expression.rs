//! The expression language: `pipeline.git.branch == "main" and not pipeline.parameters.skip`.

use crate::pattern::Patterns;

/// A value of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Val {
    Bool(bool),
    Int(i64),
    Str(String),
    Pattern(String),
    Undefined,
}

impl Val {
    /// Only `false` and undefined are falsy here: `0` and `""` are truthy.
    pub fn truthy(&self) -> bool {
        !matches!(self, Val::Bool(false) | Val::Undefined)
    }
}

/// What went wrong and at which byte.
#[derive(Debug)]
pub(crate) struct Problem {
    pub message: String,
    pub at: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Int(i64),
    Str(String),
    Pattern(String),
    Op(&'static str),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (at byte {})", self.message, self.at + 1)
    }
}

/// Deeper parentheses or negations are refused.
const MAX_DEPTH: usize = 60;
const MAX_PATTERN: usize = 256;

/// The value of `text`; `lookup` gives the value of a name, or `None` for a name that does not exist.
pub(crate) fn evaluate(text: &str, lookup: &mut dyn FnMut(&str) -> Option<Val>) -> Result<Val, Problem> {
    evaluate_with(text, &Patterns::default(), lookup)
}

/// The same, with patterns that other expressions have used before.
pub(crate) fn evaluate_with(
    text: &str,
    patterns: &Patterns,
    lookup: &mut dyn FnMut(&str) -> Option<Val>,
) -> Result<Val, Problem> {
    let tokens = scan(text)?;
    let mut machine = Machine { tokens, next: 0, end: text.len(), patterns, lookup, depth: 0 };
    let value = machine.or(true)?;
    match machine.tokens.get(machine.next) {
        None => Ok(value),
        Some((_, at)) => {
            Err(Problem { message: "the expression ends here, but more text follows".into(), at: *at })
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '?')
}

fn scan(text: &str) -> Result<Vec<(Token, usize)>, Problem> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let problem = |message: &str| Problem { message: message.to_owned(), at };
        let (token, length) = match c {
            ' ' | '\t' | '\r' | '\n' => {
                at += 1;
                continue;
            }
            '"' | '/' => {
                let (body, length) =
                    quoted(rest, c).ok_or_else(|| problem("a text or pattern is not closed"))?;
                if c == '"' {
                    (Token::Str(body), length)
                } else if body.chars().count() > MAX_PATTERN {
                    return Err(problem("a pattern is longer than 256 characters"));
                } else if body.chars().any(|c| c > '\u{ff}') || body.contains("\\u") || body.contains("\\x") {
                    return Err(problem("a pattern holds Latin-1 characters alone, and no `\\u` or `\\x`"));
                } else {
                    (Token::Pattern(body), length)
                }
            }
            '0'..='9' => {
                let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let number = rest[..length].parse().map_err(|_| problem("the number is too large"))?;
                (Token::Int(number), length)
            }
            c if c.is_ascii_alphabetic() => {
                let length = rest.find(|c: char| !is_name(c) && c != '.').unwrap_or(rest.len());
                let name = &rest[..length];
                if name.contains("..") || name.ends_with('.') {
                    return Err(problem("a name has an empty part between dots"));
                }
                let token = match name {
                    "and" | "AND" => Token::Op("and"),
                    "or" | "OR" => Token::Op("or"),
                    "not" | "NOT" => Token::Op("not"),
                    "starts-with" => Token::Op("starts-with"),
                    "matches" => Token::Op("matches"),
                    "contains" => Token::Op("contains"),
                    name => Token::Name(name.to_owned()),
                };
                (token, length)
            }
            _ => {
                let ops = ["==", "!=", "<=", ">=", "<", ">", "!", "(", ")"];
                let op = ops.into_iter().find(|op| rest.starts_with(op));
                let op = op.ok_or_else(|| problem(&format!("the character `{c}` has no meaning here")))?;
                (Token::Op(if op == "!" { "not" } else { op }), op.len())
            }
        };
        tokens.push((token, at));
        at += length;
    }
    Ok(tokens)
}

/// The body of a quoted text with its escapes resolved, and the length with both quotes.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut body = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Some((body, i + 1));
        }
        if c == '\\' {
            let (_, escaped) = chars.next()?;
            // In a pattern only the slash is escaped; the rest is the pattern's own.
            if escaped != quote && !(quote == '"' && escaped == '\\') {
                body.push('\\');
            }
            body.push(escaped);
            continue;
        }
        body.push(c);
    }
    None
}

struct Machine<'l> {
    tokens: Vec<(Token, usize)>,
    next: usize,
    end: usize,
    patterns: &'l Patterns,
    lookup: &'l mut dyn FnMut(&str) -> Option<Val>,
    depth: usize,
}

impl Machine<'_> {
    fn op(&mut self, wanted: &[&'static str]) -> Option<(&'static str, usize)> {
        match self.tokens.get(self.next) {
            Some((Token::Op(op), at)) if wanted.contains(op) => {
                let found = (*op, *at);
                self.next += 1;
                Some(found)
            }
            _ => None,
        }
    }

    // `live` is false where the value cannot matter (short circuit): names and types are then not checked.
    fn or(&mut self, live: bool) -> Result<Val, Problem> {
        let mut left = self.and(live)?;
        while self.op(&["or"]).is_some() {
            let right = self.and(live && !left.truthy())?;
            if !left.truthy() {
                left = right;
            }
        }
        Ok(left)
    }

    fn and(&mut self, live: bool) -> Result<Val, Problem> {
        let mut left = self.equality(live)?;
        while self.op(&["and"]).is_some() {
            let right = self.equality(live && left.truthy())?;
            if left.truthy() {
                left = right;
            }
        }
        Ok(left)
    }

    fn equality(&mut self, live: bool) -> Result<Val, Problem> {
        let mut left = self.comparison(live)?;
        while let Some((op, at)) = self.op(&["==", "!=", "starts-with", "matches", "contains"]) {
            let right = self.comparison(live)?;
            left = if live { infix(op, &left, &right, self.patterns, at)? } else { Val::Undefined };
        }
        Ok(left)
    }

    fn comparison(&mut self, live: bool) -> Result<Val, Problem> {
        let mut left = self.unary(live)?;
        while let Some((op, at)) = self.op(&["<", "<=", ">", ">="]) {
            let right = self.unary(live)?;
            left = match (&left, &right) {
                _ if !live => Val::Undefined,
                (Val::Undefined, _) | (_, Val::Undefined) => Val::Undefined,
                (Val::Int(a), Val::Int(b)) => Val::Bool(match op {
                    "<" => a < b,
                    "<=" => a <= b,
                    ">" => a > b,
                    _ => a >= b,
                }),
                _ => return Err(Problem { message: format!("`{op}` compares two integers"), at }),
            };
        }
        Ok(left)
    }

    fn unary(&mut self, live: bool) -> Result<Val, Problem> {
        if let Some((_, at)) = self.op(&["not"]) {
            self.enter(at)?;
            let value = self.unary(live)?;
            self.depth -= 1;
            return Ok(Val::Bool(!value.truthy()));
        }
        self.primary(live)
    }

    fn enter(&mut self, at: usize) -> Result<(), Problem> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem {
                message: format!("the expression is nested deeper than {MAX_DEPTH} levels"),
                at,
            });
        }
        Ok(())
    }

    fn primary(&mut self, live: bool) -> Result<Val, Problem> {
        let Some((token, at)) = self.tokens.get(self.next).cloned() else {
            return Err(Problem { message: "an expression was expected".into(), at: self.end });
        };
        self.next += 1;
        match token {
            Token::Int(number) => Ok(Val::Int(number)),
            Token::Str(text) => Ok(Val::Str(text)),
            Token::Pattern(text) => Ok(Val::Pattern(text)),
            Token::Op("(") => {
                self.enter(at)?;
                let value = self.or(live)?;
                self.depth -= 1;
                match self.op(&[")"]) {
                    Some(_) => Ok(value),
                    None => Err(Problem { message: "a closing parenthesis is missing".into(), at }),
                }
            }
            Token::Name(name) => match name.as_str() {
                "true" | "TRUE" => Ok(Val::Bool(true)),
                "false" | "FALSE" => Ok(Val::Bool(false)),
                name => match (self.lookup)(name) {
                    Some(value) => Ok(value),
                    None if !live => Ok(Val::Undefined),
                    None => Err(Problem {
                        message: format!("Referred to a variable \"{name}\" that does not exist"),
                        at,
                    }),
                },
            },
            Token::Op(op) => Err(Problem { message: format!("an expression was expected, not `{op}`"), at }),
        }
    }
}

fn infix(op: &str, left: &Val, right: &Val, patterns: &Patterns, at: usize) -> Result<Val, Problem> {
    let wrong = |what: &str| Problem { message: format!("`{op}` needs {what}"), at };
    let result = match (op, left, right) {
        (_, Val::Undefined, _) | (_, _, Val::Undefined) => return Ok(Val::Undefined),
        ("==", a, b) => a == b,
        ("!=", a, b) => a != b,
        ("starts-with", Val::Str(a), Val::Str(b)) => a.starts_with(b.as_str()),
        ("contains", Val::Str(a), Val::Str(b)) => a.contains(b.as_str()),
        ("matches", Val::Str(a), Val::Pattern(b)) => {
            patterns.matches_linear(b, a).map_err(|message| Problem { message, at })?
        }
        ("matches", _, _) => return Err(wrong("a text on the left and a pattern on the right")),
        _ => return Err(wrong("two texts")),
    };
    Ok(Val::Bool(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(text: &str) -> Result<Val, Problem> {
        evaluate(text, &mut |name| match name {
            "branch" => Some(Val::Str("main".into())),
            "tag" => Some(Val::Undefined),
            "n" => Some(Val::Int(3)),
            "pipeline.parameters.my-flag" => Some(Val::Bool(false)),
            _ => None,
        })
    }

    #[test]
    fn values_and_precedence() {
        let cases = [
            ("branch == \"main\"", Val::Bool(true)),
            ("branch != \"main\" or n > 2", Val::Bool(true)),
            ("not pipeline.parameters.my-flag and false", Val::Bool(false)),
            ("tag != \"x\"", Val::Undefined),
            ("branch matches /ma/", Val::Bool(false)),
            ("branch matches /ma.*/", Val::Bool(true)),
            ("branch starts-with \"ma\" AND branch contains \"in\"", Val::Bool(true)),
            ("false and 10 or 1", Val::Int(1)),
            ("0 and \"x\"", Val::Str("x".into())),
            ("n == \"3\"", Val::Bool(false)),
            ("!(n >= 3)", Val::Bool(false)),
            ("false and nothing.there", Val::Bool(false)),
        ];
        for (text, expected) in cases {
            assert_eq!(eval(text).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn problems() {
        for text in [
            "",
            "branch ==",
            "branch branch",
            "(n",
            "unknown",
            "n > branch",
            "branch matches \"x\"",
            "\"a",
            "a..b",
            "n $ 1",
        ] {
            assert!(eval(text).is_err(), "{text}");
        }
        assert!(eval(&"(".repeat(5000)).is_err());
    }
}
