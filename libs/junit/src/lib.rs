//! JUnit XML, as test runners of all kinds write it (execution §18). A stream of events with limits, no DTD and no
//! entities but the five of XML: reports come from whoever wrote the tests (security §5.2).

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesRef, BytesStart, Event},
};
use serde::{Deserialize, Serialize};

/// Deepest nesting of elements.
const MAX_DEPTH: usize = 64;
/// Longest attribute in bytes.
const MAX_ATTRIBUTE: usize = 64 << 10;
/// Longest text of a failure in bytes; what is longer is cut, with a mark.
const MAX_TEXT: usize = 1 << 20;
const CUT: &str = "… (cut)";

/// One test as it ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Name of its class.
    pub classname: String,
    /// File that it is in, without a leading `./`; empty where the report does not say.
    pub file: String,
    /// Its name.
    pub name: String,
    /// How it ended.
    pub result: Outcome,
    /// Seconds.
    pub run_time: f64,
    /// What a test that did not succeed said.
    pub message: String,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It passed.
    #[default]
    Success,
    /// An expectation did not hold.
    Failure,
    /// It broke.
    Error,
    /// It was not run.
    Skipped,
}

impl Outcome {
    /// The public word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

/// Why a report was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is another kind of report.
    #[error("invalid top level element: {0}")]
    TopLevel(String),
    /// It is not well-formed.
    #[error("not well-formed at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// It holds what reports have no use for, or too much.
    #[error("{0}")]
    Refused(String),
}

/// Reads a report; at most `limit` tests.
///
/// # Errors
/// The text is not a report, or crosses a limit. What was read until then is not given: a report counts whole.
pub fn parse(text: &[u8], limit: usize) -> Result<Vec<Case>, Error> {
    // Another encoding leaves marks in names; nothing else depends on it.
    let text = String::from_utf8_lossy(text);
    let mut reader = Reader::from_str(&text);
    let mut state = State { limit, ..State::default() };
    loop {
        let at = reader.buffer_position();
        let malformed = |what: String| Error::Malformed { at, what };
        match reader.read_event().map_err(|e| malformed(e.to_string()))? {
            Event::Start(element) => state.open(&element, at)?,
            Event::Empty(element) => {
                state.open(&element, at)?;
                state.close();
            }
            Event::End(_) => state.close(),
            Event::Text(text) => state.text(&text),
            Event::CData(text) => state.text(&text),
            Event::GeneralRef(entity) => state.text(&resolve(&entity)?),
            Event::DocType(_) => return Err(Error::Refused("a DTD is not allowed".into())),
            Event::Eof if state.stack.is_empty() && state.began => return Ok(state.cases),
            Event::Eof if state.stack.is_empty() => return Err(malformed("there is no element".into())),
            Event::Eof => return Err(malformed("it ends in the middle".into())),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

/// The character of a reference; those that a DTD would define are not allowed.
fn resolve(entity: &BytesRef<'_>) -> Result<String, Error> {
    let name = entity.to_string();
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix('x') {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => number.parse(),
        };
        // Test runners write control characters that XML has no place for.
        return Ok(code.ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER).to_string());
    }
    match quick_xml::escape::resolve_xml_entity(&name) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::Refused(format!("the entity &{name}; is not allowed"))),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Element {
    Suite,
    Case,
    /// `failure`, `error` and `skipped`: their text is the message.
    Told,
    /// `system-out` and `system-err` of a test.
    Output,
    Other,
}

#[derive(Default)]
struct State {
    stack: Vec<Element>,
    began: bool,
    limit: usize,
    /// Files of the open suites.
    files: Vec<String>,
    case: Option<Case>,
    output: String,
    cases: Vec<Case>,
}

impl State {
    fn open(&mut self, element: &BytesStart<'_>, at: u64) -> Result<(), Error> {
        let name = element.local_name().as_ref().to_string();
        if self.stack.len() == MAX_DEPTH {
            return Err(Error::Refused(format!("elements are nested deeper than {MAX_DEPTH}")));
        }
        if self.stack.is_empty() {
            if self.began || !matches!(name.as_str(), "testsuites" | "testsuite") {
                return Err(Error::TopLevel(name));
            }
            self.began = true;
        }
        let kind = match (name.as_str(), self.case.is_some()) {
            ("testsuite" | "testsuites", false) => {
                let file = attribute(element, &["file", "filepath"], at)?;
                self.files.push(file.or_else(|| self.files.last().cloned()).unwrap_or_default());
                Element::Suite
            }
            ("testcase", false) => {
                if self.cases.len() == self.limit {
                    return Err(Error::Refused(format!("more than {} tests", self.limit)));
                }
                let text = |names: &[&str]| attribute(element, names, at).map(Option::unwrap_or_default);
                let file = attribute(element, &["file"], at)?;
                let file = file.or_else(|| self.files.last().cloned()).unwrap_or_default();
                self.case = Some(Case {
                    classname: text(&["classname"])?,
                    file: file.strip_prefix("./").unwrap_or(&file).to_owned(),
                    name: text(&["name"])?,
                    run_time: seconds(&text(&["time"])?),
                    ..Case::default()
                });
                self.output.clear();
                Element::Case
            }
            ("failure" | "error" | "skipped", true) => {
                let message = attribute(element, &["message"], at)?.unwrap_or_default();
                if let Some(case) = &mut self.case {
                    let told = match name.as_str() {
                        "failure" => Outcome::Failure,
                        "error" => Outcome::Error,
                        _ => Outcome::Skipped,
                    };
                    // A test that fails and breaks down afterwards failed.
                    if case.result == Outcome::Success || case.result == Outcome::Skipped {
                        case.result = told;
                    }
                    append(&mut case.message, &message);
                }
                Element::Told
            }
            ("system-out" | "system-err", true) => Element::Output,
            _ => Element::Other,
        };
        self.stack.push(kind);
        Ok(())
    }

    fn close(&mut self) {
        match self.stack.pop() {
            Some(Element::Suite) => drop(self.files.pop()),
            Some(Element::Case) => {
                if let Some(mut case) = self.case.take() {
                    if matches!(case.result, Outcome::Failure | Outcome::Error) {
                        let output = std::mem::take(&mut self.output);
                        append(&mut case.message, output.trim());
                    }
                    case.message = case.message.trim().to_owned();
                    self.cases.push(case);
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        match (self.stack.last(), &mut self.case) {
            (Some(Element::Told), Some(case)) => continue_text(&mut case.message, text),
            (Some(Element::Output), _) => continue_text(&mut self.output, text),
            _ => {}
        }
    }
}

/// Adds a text on a line of its own.
fn append(to: &mut String, text: &str) {
    if !to.is_empty() && !to.ends_with('\n') && !text.is_empty() {
        to.push('\n');
    }
    continue_text(to, text);
    if !text.is_empty() && !to.ends_with(CUT) {
        to.push('\n');
    }
}

fn continue_text(to: &mut String, text: &str) {
    if to.ends_with(CUT) {
        return;
    }
    let room = MAX_TEXT.saturating_sub(to.len());
    if text.len() <= room {
        to.push_str(text);
    } else {
        to.push_str(&text[..text.floor_char_boundary(room)]);
        to.push_str(CUT);
    }
}

fn attribute(element: &BytesStart<'_>, names: &[&str], at: u64) -> Result<Option<String>, Error> {
    let malformed = |what: String| Error::Malformed { at, what };
    for name in names {
        for attribute in element.attributes().with_checks(false) {
            let attribute = attribute.map_err(|e| malformed(e.to_string()))?;
            if attribute.key.local_name().as_ref() != *name {
                continue;
            }
            if attribute.value.len() > MAX_ATTRIBUTE {
                return Err(Error::Refused(format!(
                    "the attribute {name} has more than {MAX_ATTRIBUTE} bytes"
                )));
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            let text = match value {
                Ok(text) => text.into_owned(),
                // A name with an odd character is better than no report.
                Err(_) => attribute.value.to_string(),
            };
            if !text.is_empty() {
                return Ok(Some(text.replace('\0', "\u{fffd}")));
            }
        }
    }
    Ok(None)
}

/// Seconds; a comma separates thousands, and what is no number is 0.
fn seconds(text: &str) -> f64 {
    let number: f64 = text.trim().replace(',', "").parse().unwrap_or_default();
    if number.is_finite() && number > 0.0 { number } else { 0.0 }
}

#[cfg(test)]
mod tests;
