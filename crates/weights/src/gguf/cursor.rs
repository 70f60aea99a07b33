//! How are untrusted bytes read so that nothing is believed before it is checked?
//!
//! Every read names what it reads, so a refusal can say where the file broke off. Names are
//! `fmt::Arguments`: no text is made unless the read fails.

use std::fmt::Arguments;

use crate::Flaw;
use crate::error::Quoted;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Offset of the next byte from the start of the file.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The same bytes, read again from an earlier offset.
    pub(super) fn rewound(&self, offset: usize) -> Self {
        assert!(offset <= self.at, "rewinding goes back");
        Cursor { bytes: self.bytes, at: offset }
    }

    pub(super) fn take(&mut self, count: usize, what: Arguments<'_>) -> Result<&'a [u8], Flaw> {
        if count > self.remaining() {
            let problem = format!(
                "{what} needs {count} bytes but only {} are left: is the download incomplete?",
                self.remaining()
            );
            return Err(Flaw::new(self.at, problem));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: Arguments<'_>) -> Result<[u8; N], Flaw> {
        let taken = self.take(N, what)?;
        Ok(taken.try_into().expect("invariant: take returns as many bytes as asked"))
    }

    pub(super) fn u32(&mut self, what: Arguments<'_>) -> Result<u32, Flaw> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: Arguments<'_>) -> Result<u64, Flaw> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A u64 count of things that take at least `bytes_min` bytes each: believed only if that many
    /// can still follow.
    pub(super) fn count(&mut self, bytes_min: usize, what: Arguments<'_>) -> Result<usize, Flaw> {
        let start = self.at;
        let claimed = self.u64(what)?;
        let fits = (self.remaining() / bytes_min) as u64;
        if claimed > fits {
            let problem = format!(
                "{what} is {claimed}, but the {} bytes left can hold {fits} at most: \
                the file is damaged or incomplete",
                self.remaining()
            );
            return Err(Flaw::new(start, problem));
        }
        Ok(usize::try_from(claimed).expect("invariant: at most the bytes remaining"))
    }

    /// A u64 length and that many bytes.
    pub(super) fn string(&mut self, what: Arguments<'_>) -> Result<&'a [u8], Flaw> {
        let length = self.count(1, format_args!("the length of {what}"))?;
        self.take(length, what)
    }

    /// A string of at most `bytes_max` bytes that must be UTF-8.
    pub(super) fn text(&mut self, bytes_max: usize, what: Arguments<'_>) -> Result<&'a str, Flaw> {
        let start = self.at;
        let raw = self.string(what)?;
        if raw.len() > bytes_max {
            let problem = format!("{what} is {} bytes long, the limit is {bytes_max}", raw.len());
            return Err(Flaw::new(start, problem));
        }
        std::str::from_utf8(raw).map_err(|error| {
            let readable = String::from_utf8_lossy(&raw[..error.valid_up_to()]);
            let place = self.at - raw.len() + error.valid_up_to();
            Flaw::new(place, format!("{what} is not UTF-8 after \"{}\"", Quoted(&readable)))
        })
    }
}
