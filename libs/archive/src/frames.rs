//! A stream of bytes with a last word: pieces with their length before them, an empty piece, then the rest is a text.

use std::io::{self, Read, Write};

/// Largest piece.
const PIECE: usize = 256 << 10;

/// Writes pieces. Dropping it without [`Writer::finish`] tells the reader that the stream broke off.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// A stream that begins.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::with_capacity(PIECE) }
    }

    fn piece(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let length = u32::try_from(self.buffer.len()).map_err(io::Error::other)?;
            self.out.write_all(&length.to_le_bytes())?;
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Ends the stream with a last word, and gives back what it was written to.
    ///
    /// # Errors
    /// The reader is gone.
    pub fn finish(mut self, word: &[u8]) -> io::Result<W> {
        self.piece()?;
        self.out.write_all(&0u32.to_le_bytes())?;
        self.out.write_all(word)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            self.piece()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.piece()?;
        self.out.flush()
    }
}

/// Reads pieces: ends where the stream was ended, and fails where it broke off.
#[derive(Debug)]
pub struct Reader<R: Read> {
    from: R,
    left: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// A stream that begins.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, ended: false }
    }

    /// The last word, once all pieces were read.
    ///
    /// # Errors
    /// The stream is not at its end, or the word has more than `limit` bytes.
    pub fn finish(mut self, limit: u64) -> io::Result<Vec<u8>> {
        io::copy(&mut self, &mut io::sink())?;
        let mut word = Vec::new();
        self.from.take(limit + 1).read_to_end(&mut word)?;
        if word.len() as u64 > limit {
            return Err(io::Error::other("the end of the stream is too long"));
        }
        Ok(word)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            let mut length = [0; 4];
            self.from.read_exact(&mut length)?;
            self.left = u32::from_le_bytes(length) as usize;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(self.left);
        let read = self.from.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}
