//! Hides secret values in a stream of output (security §4.5). Pure: bytes in, bytes out, no I/O.
//!
//! The result does not depend on how the stream is cut into pieces, and no more is held back than what may
//! still become part of a match.

mod automaton;
mod forms;

use automaton::Automaton;
use std::{collections::VecDeque, sync::Arc};

/// What stands in the place of a value, whatever its length.
pub const REPLACEMENT: &[u8] = b"**REDACTED**";

/// Shortest value, in bytes, that is masked: shorter ones would turn ordinary words into holes.
pub const MIN_LEN: usize = 4;

/// How many bytes a candidate of the normalised view may span: without a bound, escape sequences without end
/// inside a candidate would be held without end.
const MAX_SPREAD: u64 = 64 * 1024;

/// Columns at which encoders and terminals wrap lines.
const WRAPS: [u64; 4] = [64, 72, 76, 80];

/// Whether a value is masked: the words of logic would hide half of every log.
pub fn is_maskable(value: &[u8]) -> bool {
    value.len() >= MIN_LEN && !matches!(value, b"true" | b"True" | b"false" | b"False" | b"null")
}

/// The values of one task, prepared once and shared by its streams.
#[derive(Clone)]
pub struct Secrets {
    needles: Arc<Vec<Vec<u8>>>,
    automaton: Arc<Automaton>,
}

impl Secrets {
    /// Prepares the values and the forms in which they may appear.
    pub fn new<V: AsRef<[u8]>>(values: &[V]) -> Self {
        Self::over(forms::needles(values.iter().map(AsRef::as_ref)))
    }

    /// These values and more.
    pub fn with<V: AsRef<[u8]>>(&self, values: &[V]) -> Self {
        let mut needles = self.needles.as_ref().clone();
        needles.extend(forms::needles(values.iter().map(AsRef::as_ref)));
        Self::over(needles)
    }

    /// These tokens and more. They are signed ones of parts with dots between (JWT): each is hidden as it is, and in every
    /// form its last part, the signature, without which the others open nothing. All forms of the whole would take
    /// megabytes in every agent.
    pub fn with_tokens<V: AsRef<[u8]>>(&self, tokens: &[V]) -> Self {
        let mut needles = self.needles.as_ref().clone();
        for token in tokens {
            let token = token.as_ref();
            let signature = token.rsplit(|byte| *byte == b'.').next().unwrap_or(token);
            needles.extend(forms::needles(std::iter::once(signature)));
            needles.push(token.to_vec());
        }
        Self::over(needles)
    }

    fn over(needles: Vec<Vec<u8>>) -> Self {
        Self { automaton: Arc::new(Automaton::new(&needles)), needles: Arc::new(needles) }
    }

    /// A masker for one stream.
    pub fn masker(&self) -> Masker {
        Masker::over(Arc::clone(&self.automaton))
    }

    /// Masks a text that is complete.
    pub fn mask(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut masker = self.masker();
        masker.push(text, &mut out);
        masker.flush(&mut out);
        out
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    /// After ESC.
    Start,
    /// In a control sequence, until its final byte.
    Csi,
    /// In a string (titles, links), until BEL, ESC or the end of the line.
    Text,
}

/// The view without escape sequences, carriage returns, NUL, zero-width characters and line wraps.
/// Exists only while it differs from the raw view.
struct Normal {
    state: u32,
    /// Source offsets of the bytes that the state stands for.
    offsets: VecDeque<u64>,
}

struct Span {
    start: u64,
    end: u64,
    announced: bool,
}

/// Masks one stream.
pub struct Masker {
    ac: Arc<Automaton>,
    state: u32,
    normal: Option<Normal>,
    escape: Escape,
    /// Bytes that may turn out to be a zero-width character.
    undecided: Vec<u8>,
    /// Offset of the first of them.
    undecided_from: u64,
    /// Visible bytes on this line.
    column: u64,
    /// Offset of the next byte.
    pos: u64,
    held: Vec<u8>,
    /// Offset of the first held byte.
    base: u64,
    spans: VecDeque<Span>,
}

impl Masker {
    /// A masker of its own for these values.
    pub fn new<V: AsRef<[u8]>>(values: &[V]) -> Self {
        Secrets::new(values).masker()
    }

    fn over(ac: Arc<Automaton>) -> Self {
        Self {
            ac,
            state: 0,
            normal: None,
            escape: Escape::None,
            undecided: Vec::new(),
            undecided_from: 0,
            column: 0,
            pos: 0,
            held: Vec::new(),
            base: 0,
            spans: VecDeque::new(),
        }
    }

    /// Takes bytes and appends to `out` all that is decided.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.ac.is_empty() {
            out.extend_from_slice(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        let ac = Arc::clone(&self.ac);
        let mut i = 0;
        while i < bytes.len() {
            if self.state == 0 && self.normal.is_none() && self.escape == Escape::None {
                // Nothing is under way: run over bytes that start nothing.
                let skip = ac.skip(&bytes[i..]);
                self.pos += skip as u64;
                self.column += skip as u64;
                i += skip;
            }
            self.step(&ac, bytes[i]);
            i += 1;
        }
        let limit = self.decided(&ac);
        self.emit(limit, out);
    }

    /// Ends the stream: what is held matched nothing.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        let ac = Arc::clone(&self.ac);
        self.settle(&ac);
        self.emit(self.pos, out);
        self.state = 0;
        self.normal = None;
    }

    /// Bytes that are held because they may be the beginning of a value.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn step(&mut self, ac: &Automaton, byte: u8) {
        let at = self.pos;
        let before = self.state;
        self.state = ac.next(before, byte);
        let len = ac.matched(self.state);
        self.pos += 1;
        if len > 0 {
            self.cover(at + 1 - u64::from(len), at + 1);
        }
        // The normalised view.
        let skipped = match self.escape {
            Escape::Start => {
                self.escape = match byte {
                    b'[' => Escape::Csi,
                    b']' | b'P' | b'X' | b'^' | b'_' => Escape::Text,
                    _ => Escape::None,
                };
                true
            }
            Escape::Csi if byte != 0x1b && byte != b'\n' => {
                if (0x40..=0x7e).contains(&byte) {
                    self.escape = Escape::None;
                }
                true
            }
            Escape::Text if byte != 0x1b && byte != b'\n' => {
                if byte == 0x07 {
                    self.escape = Escape::None;
                }
                true
            }
            _ => {
                self.escape = if byte == 0x1b { Escape::Start } else { Escape::None };
                matches!(byte, 0x1b | b'\r' | 0)
            }
        };
        let wrap = byte == b'\n' && !skipped && WRAPS.contains(&self.column);
        if byte == b'\n' && !skipped {
            self.column = 0;
        } else if !skipped {
            self.column += 1;
        }
        let opens = self.undecided.is_empty() && matches!(byte, 0xe2 | 0xef);
        if skipped || wrap || opens || !self.undecided.is_empty() {
            self.diverge(ac, before, at);
        }
        if self.normal.is_none() {
            return;
        }
        if skipped || wrap {
            self.settle(ac);
        } else if opens {
            self.undecided_from = at;
            self.undecided.push(byte);
        } else if self.undecided.is_empty() {
            self.visible(ac, byte, at);
        } else {
            self.undecided.push(byte);
            match self.undecided.as_slice() {
                [0xe2, 0x80 | 0x81] | [0xef, 0xbb] => {}
                [0xe2, 0x80, 0x8b..=0x8f] | [0xe2, 0x81, 0xa0] | [0xef, 0xbb, 0xbf] => self.undecided.clear(),
                _ => {
                    // The last byte may open a sequence itself.
                    let reopen = matches!(byte, 0xe2 | 0xef);
                    if reopen {
                        self.undecided.pop();
                    }
                    self.settle(ac);
                    if reopen {
                        self.undecided_from = at;
                        self.undecided.push(byte);
                    }
                }
            }
        }
        self.converge(ac);
    }

    /// The undecided bytes are visible after all.
    fn settle(&mut self, ac: &Automaton) {
        for (at, byte) in (self.undecided_from..).zip(std::mem::take(&mut self.undecided)) {
            self.visible(ac, byte, at);
        }
    }

    /// Makes the normalised view a view of its own, as it was before the byte at `at`.
    fn diverge(&mut self, ac: &Automaton, before: u32, at: u64) {
        if self.normal.is_none() {
            let depth = u64::from(ac.depth(before));
            self.normal = Some(Normal { state: before, offsets: (at - depth..at).collect() });
        }
    }

    /// Drops the normalised view as soon as both views stand at the same place over the same bytes.
    fn converge(&mut self, ac: &Automaton) {
        let Some(normal) = &self.normal else { return };
        let depth = u64::from(ac.depth(self.state));
        let same = self.undecided.is_empty()
            && normal.state == self.state
            && (depth == 0 || normal.offsets.front() == Some(&(self.pos - depth)));
        let spread = normal.offsets.front().is_some_and(|first| self.pos - first > MAX_SPREAD);
        if same {
            self.normal = None;
        } else if spread && let Some(normal) = &mut self.normal {
            normal.state = 0;
            normal.offsets.clear();
        }
    }

    fn visible(&mut self, ac: &Automaton, byte: u8, at: u64) {
        let Some(normal) = &mut self.normal else { return };
        normal.state = ac.next(normal.state, byte);
        normal.offsets.push_back(at);
        let depth = ac.depth(normal.state) as usize;
        while normal.offsets.len() > depth {
            normal.offsets.pop_front();
        }
        let len = ac.matched(normal.state) as usize;
        if len > 0 {
            let start = normal.offsets[depth - len];
            self.cover(start, at + 1);
        }
    }

    /// Marks a range, merged with the ranges that it overlaps.
    fn cover(&mut self, mut start: u64, mut end: u64) {
        let mut announced = false;
        let mut at = self.spans.len();
        while at > 0 {
            let span = &self.spans[at - 1];
            if span.end <= start {
                break;
            }
            if span.start < end {
                start = start.min(span.start);
                end = end.max(span.end);
                announced |= span.announced;
                self.spans.remove(at - 1);
            }
            at -= 1;
        }
        self.spans.insert(at, Span { start, end, announced });
    }

    /// Below this offset nothing can become part of a match any more.
    fn decided(&self, ac: &Automaton) -> u64 {
        let raw = self.pos - u64::from(ac.depth(self.state));
        let normal = match &self.normal {
            Some(normal) => match normal.offsets.front() {
                Some(first) => *first,
                None => self.pos - self.undecided.len() as u64,
            },
            None => self.pos,
        };
        raw.min(normal)
    }

    fn emit(&mut self, limit: u64, out: &mut Vec<u8>) {
        let first = self.base;
        let slice = |held: &[u8], from: u64, to: u64, out: &mut Vec<u8>| {
            out.extend_from_slice(&held[(from - first) as usize..(to - first) as usize]);
        };
        while self.base < limit {
            match self.spans.front_mut() {
                Some(span) if span.start <= self.base => {
                    if !span.announced {
                        out.extend_from_slice(REPLACEMENT);
                        span.announced = true;
                    }
                    self.base = span.end.min(limit);
                    if span.end <= limit {
                        self.spans.pop_front();
                    }
                }
                next => {
                    let to = next.map_or(limit, |span| span.start.min(limit));
                    slice(&self.held, self.base, to, out);
                    self.base = to;
                }
            }
        }
        self.held.drain(..(self.base - first) as usize);
    }
}

impl Drop for Masker {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.held);
    }
}
