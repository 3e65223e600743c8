//! Spans of work that may be dropped in the middle.

use crate::{Span, Value};
use contracts::trace::Trace;

/// A span that is recorded whatever becomes of the work: what was caused by a request whose caller went away still has
/// its parent.
#[derive(Debug, Default)]
#[must_use = "dropped at once, it says that the work was given up"]
pub struct Open(Option<Span>);

impl Open {
    /// Of a span that has begun; of nothing where nobody records.
    pub fn new(span: Option<Span>) -> Self {
        Self(span)
    }

    /// What happens within it carries this on; `None`: nobody records it.
    pub fn context(&self) -> Option<Trace> {
        self.0.as_ref().map(|span| span.context)
    }

    /// Says something beside the name.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set(key, value);
        }
    }

    /// It ends now, well or not.
    pub fn end(mut self, failed: bool) {
        if let Some(span) = self.0.take() {
            span.failing(failed).ending().record();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(span) = self.0.take() {
            span.failing(true).ending().record();
        }
    }
}
