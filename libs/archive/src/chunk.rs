//! Chunks: cut by content, named by BLAKE3, compressed one by one.

use aws_lc_rs::digest;
use fastcdc::v2020::FastCDC;
use std::{
    cell::RefCell,
    fmt,
    io::{self, Read},
};
use zstd::bulk::{Compressor, Decompressor};

/// So many bytes of each chunk are not looked at to find its end.
const MIN_CHUNK: usize = 1 << 20;
const AVERAGE_CHUNK: usize = 2 << 20;
/// Largest chunk in bytes, before compression.
pub const MAX_CHUNK: usize = 8 << 20;
/// A cache is compressed while a job waits: this takes two thirds of the time of the default, 3, and four hundredths more
/// bytes, measured with libraries of programs.
const LEVEL: i32 = 2;

/// Gathers a stream and cuts it into chunks.
pub struct Cutter {
    /// Room for what is moved to the front seldom.
    block: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Cutter {
    fn default() -> Self {
        Self { block: vec![0; 4 * MAX_CHUNK], start: 0, end: 0 }
    }
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cutter").field("gathered", &(self.end - self.start)).finish_non_exhaustive()
    }
}

impl Cutter {
    /// Takes in more of a stream: what is there of the next `most` bytes, which are no more than a chunk's. None at its
    /// end.
    ///
    /// # Errors
    /// The stream breaks off.
    pub fn take_in(&mut self, from: &mut impl Read, most: usize) -> io::Result<usize> {
        if self.end + most > self.block.len() {
            self.block.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // Straight into its place: an archive is copied often enough on its way.
        let limit = (self.end + most).min(self.block.len());
        let room = &mut self.block[self.end..limit];
        let mut taken = 0;
        while taken < room.len() {
            match from.read(&mut room[taken..]) {
                Ok(0) => break,
                Ok(read) => taken += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.end += taken;
        Ok(taken)
    }

    /// The next chunk, once enough has come to know where it ends; after the `end` of the stream what is left.
    pub fn cut(&mut self, end: bool) -> Option<Vec<u8>> {
        let rest = &self.block[self.start..self.end];
        if rest.is_empty() || (rest.len() < MAX_CHUNK && !end) {
            return None;
        }
        let cutter = FastCDC::new(rest, MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK);
        let (_, length) = cutter.cut(0, rest.len());
        let chunk = rest[..length.clamp(1, rest.len())].to_vec();
        self.start += chunk.len();
        Some(chunk)
    }
}

/// The name of a chunk: BLAKE3 of its content. It is computed of every byte of a cache, stored or not, and processors
/// without instructions for SHA-256 take as long for that as for compressing.
pub fn name(chunk: &[u8]) -> [u8; 32] {
    *blake3::hash(chunk).as_bytes()
}

/// Whether a chunk is the one of a name. The first ones were named by SHA-256, and live as long as their archives.
pub fn is_named(chunk: &[u8], name: &[u8; 32]) -> bool {
    self::name(chunk) == *name || sha256(chunk) == *name
}

/// SHA-256 of bytes, which is what stores check.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    sum
}

thread_local! {
    // Their tables are larger than many a chunk: each thread makes them once.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// A chunk as it is stored.
///
/// # Errors
/// Memory ran out in the compressor.
pub fn compress(chunk: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(compressor) => compressor.compress(chunk),
        None => kept.insert(Compressor::new(LEVEL)?).compress(chunk),
    })
}

/// A stored chunk, which must have exactly `size` bytes.
///
/// # Errors
/// It is damaged, has another size, or `size` is beyond [`MAX_CHUNK`].
pub fn decompress(stored: &[u8], size: usize) -> io::Result<Vec<u8>> {
    if size > MAX_CHUNK {
        return Err(io::Error::other(format!("a chunk of {size} bytes: {MAX_CHUNK} is the limit")));
    }
    let chunk = DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(decompressor) => decompressor.decompress(stored, size),
        None => kept.insert(Decompressor::new()?).decompress(stored, size),
    })?;
    if chunk.len() == size {
        Ok(chunk)
    } else {
        Err(io::Error::other(format!("a chunk has {} bytes instead of {size}", chunk.len())))
    }
}
