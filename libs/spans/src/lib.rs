//! Spans of traces (architecture §8: a pipeline is one trace, a step is a span).
//!
//! Call sites know no backend: a span that has ended goes to the one [`Recorder`] of the process, and nowhere where none
//! was installed, at the price of one look. What can be said in a span is an id, a number, a word of ours or a name that
//! people chose; there is no way to put a command, an environment or output into one (security S-1, §4.3).

mod name;
mod open;

pub use name::Name;
pub use open::Open;

use contracts::trace::Trace;
use ids::{MessageId, Timestamp};
use std::{
    fmt,
    sync::OnceLock,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Takes spans that have ended.
pub trait Recorder: Send + Sync {
    /// Takes one. It neither waits nor fails: what cannot be kept is dropped and counted.
    fn record(&self, span: Span);
}

static RECORDER: OnceLock<Box<dyn Recorder>> = OnceLock::new();

/// Installs the process's recorder. A second one is refused and changes nothing.
pub fn install(recorder: impl Recorder + 'static) -> bool {
    RECORDER.set(Box::new(recorder)).is_ok()
}

/// Whether anybody records.
pub fn recorded() -> bool {
    RECORDER.get().is_some()
}

/// What a span is to the one above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work inside a service.
    Internal,
    /// The answer to a request.
    Server,
    /// A message that was made.
    Producer,
    /// A message that was handled.
    Consumer,
}

/// What is said beside the name.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An id.
    Id(Uuid),
    /// A count, a size in bytes, a code.
    Number(i64),
    /// One of a few words of the program itself.
    Word(&'static str),
    /// Yes or no.
    Flag(bool),
    /// What people called something.
    Name(Name),
}

impl From<Uuid> for Value {
    fn from(id: Uuid) -> Self {
        Self::Id(id)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Name> for Value {
    fn from(name: Name) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Word(word) => word.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Something that took a while, as part of a trace.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its trace and its own id: what happens within it carries this on.
    pub context: Trace,
    /// The span above it; `None`: the trace begins with it.
    pub parent: Option<u64>,
    /// The program or service whose work it was.
    pub service: &'static str,
    /// What it was: `consume conductor.jobs`, `job build`.
    pub name: Name,
    /// What it is to the one above.
    pub kind: Kind,
    /// When it began.
    pub began: Timestamp,
    /// When it ended; until it has, when it began.
    pub ended: Timestamp,
    /// Whether it did not end well.
    pub failed: bool,
    /// Spans that led here as well.
    pub links: Vec<Trace>,
    /// What is said beside the name.
    pub attributes: Vec<(&'static str, Value)>,
    clock: Instant,
}

impl Span {
    /// A span that begins now. `None`: nobody records it.
    ///
    /// Without a parent a trace begins with it.
    pub fn begin(
        parent: Option<Trace>,
        service: &'static str,
        kind: Kind,
        name: impl Into<Name>,
    ) -> Option<Self> {
        let id = MessageId::new();
        let context = parent.map_or_else(|| Trace::root(id), |parent| parent.after(id));
        Self::known(context, parent.map(|parent| parent.span), service, kind, name)
    }

    /// A span whose id was known before it began, because what is below it is told of earlier: that of a workflow, a job
    /// or a task ([`Trace::of`]).
    pub fn known(
        context: Trace,
        parent: Option<u64>,
        service: &'static str,
        kind: Kind,
        name: impl Into<Name>,
    ) -> Option<Self> {
        if !recorded() || !context.sampled {
            return None;
        }
        let began = chrono::Utc::now();
        Some(Self {
            context,
            parent: parent.filter(|parent| *parent != context.span),
            service,
            name: name.into(),
            kind,
            began,
            ended: began,
            failed: false,
            links: Vec::new(),
            attributes: Vec::new(),
            clock: Instant::now(),
        })
    }

    /// Says something beside the name.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// The same of a span that goes on.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push((key, value.into()));
    }

    /// Names a span that led here as well.
    #[must_use]
    pub fn linked(mut self, to: Option<Trace>) -> Self {
        self.links.extend(to.filter(|to| (to.trace, Some(to.span)) != (self.context.trace, self.parent)));
        self
    }

    /// Sets when it began and ended, where somebody else's clock saw it. It never ends before it began.
    #[must_use]
    pub fn lasted(mut self, began: Timestamp, ended: Timestamp) -> Self {
        self.began = began;
        self.ended = ended.max(began);
        self
    }

    /// Says whether it ended well.
    #[must_use]
    pub fn failing(mut self, failed: bool) -> Self {
        self.failed = failed;
        self
    }

    /// It ends now.
    #[must_use]
    pub fn ending(mut self) -> Self {
        let lasted = self.clock.elapsed().min(Duration::from_secs(u64::from(u32::MAX)));
        self.ended = self.began + chrono::TimeDelta::from_std(lasted).unwrap_or_default();
        self
    }

    /// Hands it, ended, to the recorder.
    pub fn record(self) {
        if let Some(recorder) = RECORDER.get() {
            recorder.record(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    static SEEN: Mutex<Vec<Span>> = Mutex::new(Vec::new());

    struct Keep;

    impl Recorder for Keep {
        fn record(&self, span: Span) {
            SEEN.lock().unwrap().push(span);
        }
    }

    fn seen(trace: u128) -> Vec<Span> {
        SEEN.lock().unwrap().iter().filter(|span| span.context.trace == trace).cloned().collect()
    }

    // One test: the recorder is the process's.
    #[test]
    fn a_span_is_recorded_once_below_its_parent_and_only_in_a_sampled_trace() {
        assert!(Span::begin(None, "api", Kind::Server, "POST").is_none(), "nobody records yet");
        assert!(install(Keep) && !install(Keep) && recorded());

        let root = Span::begin(None, "api", Kind::Server, "POST").unwrap();
        assert_eq!(root.parent, None);
        let context = root.context;
        let below = Span::begin(Some(context), "conductor", Kind::Consumer, "consume").unwrap();
        assert_eq!((below.context.trace, below.parent), (context.trace, Some(context.span)));
        assert_ne!(below.context.span, context.span);
        below.with("gantry.count", 3_i64).failing(true).ending().record();
        assert!(seen(context.trace)[0].failed);

        // A request that is dropped in the middle leaves no hole in its trace.
        let open = Open::new(Some(root));
        drop(open);
        let all = seen(context.trace);
        assert_eq!(all.len(), 2);
        assert!(all[1].failed && all[1].ended >= all[1].began);
        let mut open = Open::new(Span::begin(Some(context), "api", Kind::Server, "GET"));
        open.set("http.response.status_code", 200_i64);
        open.end(false);
        assert!(!seen(context.trace)[2].failed, "it ended well, and once");
        assert_eq!(seen(context.trace).len(), 3);

        let unsampled = Trace { sampled: false, ..context };
        assert!(Span::begin(Some(unsampled), "api", Kind::Server, "POST").is_none());

        // One that begins its trace by itself is not its own parent, and no span ends before it began.
        let id = ids::JobId::new().uuid();
        let own = Trace { trace: id.as_u128(), ..context }.of(id);
        let span = Span::known(own, Some(own.span), "conductor", Kind::Internal, "workflow").unwrap();
        assert_eq!(span.parent, None);
        let (early, late) = (chrono::DateTime::UNIX_EPOCH, chrono::Utc::now());
        assert_eq!(span.clone().lasted(late, early).ended, late);
        assert_eq!(span.clone().linked(Some(context)).links, [context]);
        let parent = Span::begin(Some(context), "a", Kind::Internal, "b").unwrap();
        assert!(parent.linked(Some(context)).links.is_empty(), "its parent needs no link");
    }
}
