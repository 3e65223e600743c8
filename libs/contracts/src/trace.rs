//! Trace context as in W3C Trace Context: which trace a message belongs to, and which span made it.
//!
//! The span of an event is made from its id, so that no table needs a column for it: whoever holds the event can
//! name the span, and the event that it caused names it as its parent.

use ids::MessageId;
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trace {
    /// The whole trace: a push with all that follows from it.
    pub trace: u128,
    /// The span that caused what carries this.
    pub span: u64,
    /// Whether it is recorded.
    pub sampled: bool,
}

impl Trace {
    /// A new trace that begins with a message.
    pub fn root(first: MessageId) -> Self {
        Self { trace: first.uuid().as_u128(), span: span_of(first), sampled: true }
    }

    /// The same trace, one step on: what follows from `message` carries this.
    #[must_use]
    pub fn after(self, message: MessageId) -> Self {
        Self { span: span_of(message), ..self }
    }

    /// The same trace inside the span of something that lasts, a workflow, a job or a task, whose id this is. Its span is
    /// told of when it has ended; what is below it may be told of before.
    #[must_use]
    pub fn of(self, id: Uuid) -> Self {
        Self { span: span_of_id(id), ..self }
    }
}

/// The span of a message: the random half of its id.
pub fn span_of(message: MessageId) -> u64 {
    span_of_id(message.uuid())
}

fn span_of_id(id: Uuid) -> u64 {
    // A UUIDv7 has its variant bits here, so it is never 0.
    id.as_u64_pair().1
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// A text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NoTrace;

impl FromStr for Trace {
    type Err = NoTrace;

    /// Reads version 00, and of later versions the part that they share with it.
    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let mut parts = text.split('-');
        let mut hex = |length: usize| {
            parts
                .next()
                .filter(|part| {
                    part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                })
                .ok_or(NoTrace)
        };
        let version = hex(2)?;
        let (trace, span, flags) = (hex(32)?, hex(16)?, hex(2)?);
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(NoTrace);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| NoTrace)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| NoTrace)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| NoTrace)?;
        if trace == 0 || span == 0 {
            return Err(NoTrace);
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace: Trace = text.parse().unwrap();
        assert!(trace.sampled && trace.to_string() == text);
        assert_eq!(
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more"
                .parse::<Trace>()
                .map(|t| t.sampled),
            Ok(false)
        );
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(bad.parse::<Trace>(), Err(NoTrace), "{bad}");
        }
    }

    #[test]
    fn a_trace_goes_on_from_message_to_message() {
        let (first, second) = (MessageId::new(), MessageId::new());
        let trace = Trace::root(first);
        let next = trace.after(second);
        assert_eq!((next.trace, next.span), (trace.trace, span_of(second)));
        assert_eq!(next.to_string().parse(), Ok(next));
    }
}
