//! Frames of the connection into a container: what is said and what commands read and write share one stream.
//!
//! A frame is a kind (one byte), a command's number (eight, little-endian), a length (four) and as many bytes.
//! An empty frame of bytes is the end of that stream. Each stream may have [`WINDOW`] bytes under way that its
//! receiver has not credited, so that a stream which nobody reads holds up no other.

use std::io;

/// Bytes of one stream that may be under way.
pub(crate) const WINDOW: usize = 256 * 1024;
/// Longest payload.
pub(crate) const LONGEST: usize = 16 << 20;
pub(crate) const HEADER: usize = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request or an event, as JSON.
    Said,
    /// To a command's standard input.
    Input,
    /// From its terminal or standard output.
    Output,
    /// From its standard error.
    Errors,
    /// The receiver has taken so many bytes of the input (four, little-endian).
    InputCredit,
    /// Of the output.
    OutputCredit,
    /// Of the errors.
    ErrorsCredit,
}

const KINDS: [Kind; 7] = [
    Kind::Said,
    Kind::Input,
    Kind::Output,
    Kind::Errors,
    Kind::InputCredit,
    Kind::OutputCredit,
    Kind::ErrorsCredit,
];

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    pub(crate) fn credit(kind: Kind, id: u64, bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { kind, id, body: bytes.to_le_bytes().to_vec() }
    }

    /// The bytes that a frame of credit gives.
    pub(crate) fn credited(&self) -> usize {
        let bytes = self.body.as_slice().try_into().map(u32::from_le_bytes).unwrap_or_default();
        usize::try_from(bytes).unwrap_or_default()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.push(u8::try_from(kind).unwrap_or_default());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(self.body.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Cuts what arrives into frames.
#[derive(Default)]
pub(crate) struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let Some((header, rest)) = self.pending.split_first_chunk::<HEADER>() else { return Ok(None) };
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let [kind, id @ .., a, b, c, d] = *header;
        let kind = *KINDS.get(usize::from(kind)).ok_or_else(|| broken("a frame of no known kind"))?;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(broken("a frame that is too long"));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let body = rest[..length].to_vec();
        self.pending.drain(..HEADER + length);
        Ok(Some(Frame { kind, id: u64::from_le_bytes(id), body }))
    }
}
