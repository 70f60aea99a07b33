//! How are remembered answers kept in a file, and what of a file is believed?
//!
//! Little-endian: the head (magic, version, model, count of answers), the answers, and the SHA-256
//! of all of it. The sum finds damage, not malice: who can write the file can write a sum too, so
//! every length, number and token is checked before it is used, and whoever may write the file is
//! trusted with the answers. Nothing of a file is used unless all of it can be.

use std::sync::Arc;

use messages::{TokenId, TokenLogprob};
use sha2::{Digest, Sha256};

use crate::answer::{Answer, AnswerEnd, AnswerToken, StopRule};
use crate::identity::{Fingerprint, Identity};
use crate::replay_cache::Entry;

/// Whose answers a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKey {
    pub model: Fingerprint,
    pub vocabulary_size: u32,
}

/// Why nothing of a file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileProblem {
    NotOurs,
    /// Another version of the format.
    Version(u32),
    Damaged,
    OtherModel,
    /// The sum is right and something in it cannot be.
    Impossible(&'static str),
}

impl std::fmt::Display for FileProblem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotOurs => write!(formatter, "it is not a file of remembered answers"),
            Self::Version(version) => {
                write!(formatter, "it has version {version}, this program reads {VERSION}")
            }
            Self::Damaged => write!(formatter, "its checksum is wrong: it is damaged or cut off"),
            Self::OtherModel => write!(formatter, "its answers are another model's"),
            Self::Impossible(what) => write!(formatter, "{what} in it cannot be"),
        }
    }
}

const MAGIC: &[u8; 8] = b"PELTANSW";
const VERSION: u32 = 1;
const SUM_BYTES: usize = 32;

pub(crate) fn write<'a>(key: &FileKey, entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut writer = Writer(MAGIC.to_vec());
    writer.number(VERSION);
    writer.0.extend_from_slice(&key.model);
    let count_at = writer.0.len();
    writer.number(0);
    let mut count = 0_u32;
    for entry in entries {
        writer.entry(entry);
        count += 1;
    }
    let mut bytes = writer.0;
    bytes[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
    let sum: [u8; SUM_BYTES] = Sha256::digest(&bytes).into();
    bytes.extend_from_slice(&sum);
    bytes
}

/// Identities, answers and when each was stored, oldest first.
pub(crate) fn read(
    bytes: &[u8],
    key: &FileKey,
) -> Result<Vec<(Identity, Answer, u64)>, FileProblem> {
    let mut reader = Reader { left: bytes, vocabulary_size: key.vocabulary_size };
    if reader.take(MAGIC.len()) != Ok(MAGIC.as_slice()) {
        return Err(FileProblem::NotOurs);
    }
    // Before the sum: another version may sum otherwise.
    let version = reader.number().map_err(|_| FileProblem::NotOurs)?;
    if version != VERSION {
        return Err(FileProblem::Version(version));
    }
    let summed = bytes.len().checked_sub(SUM_BYTES).ok_or(FileProblem::Damaged)?;
    if Sha256::digest(&bytes[..summed])[..] != bytes[summed..] {
        return Err(FileProblem::Damaged);
    }
    let head = bytes.len() - reader.left.len();
    reader.left = bytes.get(head..summed).ok_or(FileProblem::Damaged)?;
    if reader.take(key.model.len())? != key.model {
        return Err(FileProblem::OtherModel);
    }
    // A time, three lengths, an end and a token.
    let count = reader.count(22, "a number of answers")?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(reader.entry(key)?);
    }
    if !reader.left.is_empty() {
        return Err(FileProblem::Impossible("something after the last answer"));
    }
    entries.sort_by_key(|&(_, _, stored_ms)| stored_ms);
    Ok(entries)
}

struct Writer(Vec<u8>);

impl Writer {
    fn entry(&mut self, entry: &Entry) {
        self.0.extend_from_slice(&entry.stored_ms.to_le_bytes());
        self.bytes(&entry.identity.text);
        match &entry.answer.end {
            AnswerEnd::Stop => self.0.push(0),
            AnswerEnd::Length => self.0.push(1),
            AnswerEnd::StopText(rule) => {
                self.0.push(2);
                self.number(rule.min_tokens);
                self.number(rule.texts.len() as u32);
                for text in &rule.texts {
                    self.bytes(text.as_bytes());
                }
            }
        }
        self.number(entry.answer.tokens.len() as u32);
        for token in &*entry.answer.tokens {
            self.number(token.id);
            self.0.push(u8::from(token.logprob.is_some()));
            if let Some(TokenLogprob { logprob, top }) = &token.logprob {
                self.number(logprob.to_bits());
                self.number(top.len() as u32);
                for &(id, logprob) in top {
                    self.number(id);
                    self.number(logprob.to_bits());
                }
            }
        }
    }

    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }
}

struct Reader<'a> {
    left: &'a [u8],
    vocabulary_size: u32,
}

const END: FileProblem = FileProblem::Impossible("an early end");

impl<'a> Reader<'a> {
    fn entry(&mut self, key: &FileKey) -> Result<(Identity, Answer, u64), FileProblem> {
        let stored_ms = self.take(8)?.try_into().map_err(|_| END)?;
        let text = self.bytes("a length of a request")?;
        if !Identity::is_of(text, &key.model) {
            return Err(FileProblem::Impossible("a request to another model"));
        }
        let end = match self.byte()? {
            0 => AnswerEnd::Stop,
            1 => AnswerEnd::Length,
            2 => AnswerEnd::StopText(self.stop_rule()?),
            _ => return Err(FileProblem::Impossible("an end of an answer")),
        };
        // An id and whether it has log-probabilities.
        let count = self.count(5, "a number of tokens")?;
        if count == 0 {
            return Err(FileProblem::Impossible("an answer without tokens"));
        }
        let tokens = (0..count).map(|_| self.token()).collect::<Result<Arc<[_]>, _>>()?;
        let identity = Identity::from_text(text.into());
        Ok((identity, Answer { tokens, end }, u64::from_le_bytes(stored_ms)))
    }

    fn stop_rule(&mut self) -> Result<StopRule, FileProblem> {
        let min_tokens = self.number()?;
        let count = self.count(4, "a number of stop texts")?;
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            let text = std::str::from_utf8(self.bytes("a length of a stop text")?);
            texts.push(text.map_err(|_| FileProblem::Impossible("a stop text"))?.to_owned());
        }
        Ok(StopRule { texts, min_tokens })
    }

    fn token(&mut self) -> Result<AnswerToken, FileProblem> {
        let id = self.id()?;
        let logprob = match self.byte()? {
            0 => None,
            1 => {
                let logprob = f32::from_bits(self.number()?);
                let count = self.count(8, "a number of log-probabilities")?;
                let top = (0..count).map(|_| Ok((self.id()?, f32::from_bits(self.number()?))));
                Some(TokenLogprob { logprob, top: top.collect::<Result<_, FileProblem>>()? })
            }
            _ => return Err(FileProblem::Impossible("a log-probability")),
        };
        Ok(AnswerToken { id, logprob })
    }

    fn id(&mut self) -> Result<TokenId, FileProblem> {
        let id = self.number()?;
        let known = id < self.vocabulary_size;
        known.then_some(id).ok_or(FileProblem::Impossible("a token"))
    }

    /// How many items of at least so many bytes follow: no more than there are bytes.
    fn count(&mut self, item_bytes: usize, what: &'static str) -> Result<usize, FileProblem> {
        let count = self.number()? as usize;
        let fits = count <= self.left.len() / item_bytes;
        fits.then_some(count).ok_or(FileProblem::Impossible(what))
    }

    fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], FileProblem> {
        let count = self.count(1, what)?;
        self.take(count)
    }

    fn number(&mut self) -> Result<u32, FileProblem> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| END)?))
    }

    fn byte(&mut self) -> Result<u8, FileProblem> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], FileProblem> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(END)?;
        self.left = left;
        Ok(taken)
    }
}
