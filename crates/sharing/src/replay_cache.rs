//! Which answers are remembered? The ones used last, for a while, within bounds.

use std::collections::{BTreeMap, VecDeque};

use crate::answer::{Answer, AnswerEnd};
use crate::identity::Identity;

/// How much is remembered, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimits {
    pub entries_max: usize,
    /// Tokens of all answers.
    pub tokens_max: u64,
    /// Bytes of all answers and of the requests they are compared with.
    pub bytes_max: u64,
    /// From the end of an answer.
    pub ttl_ms: u64,
}

/// Maps and counters of one entry: measured generously.
const ENTRY_BYTES: u64 = 256;

/// Answers that were remembered, of which one can tell why they are not any more.
const GONE_MAX: usize = 256;

/// Why an answer is not remembered any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    Expired,
    MadeRoom,
}

/// One remembered answer.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    pub(crate) answer: Answer,
    pub(crate) stored_ms: u64,
    /// Its place in `by_age`.
    age_tick: u64,
    /// Its place in `by_use`.
    use_tick: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct ReplayCache {
    limits: ReplayLimits,
    entries: BTreeMap<[u8; 32], Entry>,
    by_age: BTreeMap<u64, [u8; 32]>,
    by_use: BTreeMap<u64, [u8; 32]>,
    tick: u64,
    tokens: u64,
    bytes: u64,
    /// The latest at the end.
    gone: VecDeque<([u8; 32], Gone)>,
}

impl ReplayCache {
    pub(crate) fn new(limits: ReplayLimits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            by_age: BTreeMap::new(),
            by_use: BTreeMap::new(),
            tick: 0,
            tokens: 0,
            bytes: 0,
            gone: VecDeque::with_capacity(GONE_MAX),
        }
    }

    /// Why the answer of a request is not remembered any more, if it was.
    pub(crate) fn gone(&self, identity: &Identity) -> Option<Gone> {
        let found = self.gone.iter().rev().find(|(digest, _)| *digest == identity.digest);
        found.map(|&(_, why)| why)
    }

    /// The remembered answer of a request. It counts as used only by [`ReplayCache::touch`].
    pub(crate) fn get(&mut self, identity: &Identity, now_ms: u64) -> Option<&Entry> {
        self.expire(now_ms);
        self.entries.get(&identity.digest).filter(|entry| entry.identity == *identity)
    }

    pub(crate) fn knows(&self, identity: &Identity) -> bool {
        self.entries.contains_key(&identity.digest)
    }

    /// Makes an entry the last to be dropped.
    pub(crate) fn touch(&mut self, identity: &Identity) {
        self.tick += 1;
        if let Some(entry) = self.entries.get_mut(&identity.digest) {
            self.by_use.remove(&entry.use_tick);
            entry.use_tick = self.tick;
            self.by_use.insert(self.tick, identity.digest);
        }
    }

    /// Remembers an answer, unless the one that is remembered serves more requests or this one has
    /// no room.
    pub(crate) fn insert(&mut self, identity: Identity, answer: Answer, now_ms: u64) {
        self.expire(now_ms);
        let (tokens, bytes) = size_of_entry(&identity, &answer);
        let limits = &self.limits;
        if limits.entries_max == 0 || tokens > limits.tokens_max || bytes > limits.bytes_max {
            return;
        }
        if let Some(before) = self.entries.get(&identity.digest) {
            if before.identity == identity && !answer.outlasts(&before.answer) {
                return;
            }
            self.take(identity.digest);
        }
        self.gone.retain(|(digest, _)| *digest != identity.digest);
        self.make_room(1, tokens, bytes);
        self.tick += 1;
        let tick = self.tick;
        self.by_age.insert(tick, identity.digest);
        self.by_use.insert(tick, identity.digest);
        self.tokens += tokens;
        self.bytes += bytes;
        let digest = identity.digest;
        let entry = Entry { identity, answer, stored_ms: now_ms, age_tick: tick, use_tick: tick };
        self.entries.insert(digest, entry);
    }

    /// Holds other limits from now on; what has no room is dropped.
    pub(crate) fn set_limits(&mut self, limits: ReplayLimits, now_ms: u64) {
        self.limits = limits;
        self.expire(now_ms);
        self.make_room(0, 0, 0);
    }

    /// Drops entries until there is room for one more of this size; it must fit by itself.
    fn make_room(&mut self, entries: usize, tokens: u64, bytes: u64) {
        while self.entries.len() + entries > self.limits.entries_max
            || self.tokens + tokens > self.limits.tokens_max
            || self.bytes + bytes > self.limits.bytes_max
        {
            let (_, &oldest) =
                self.by_use.first_key_value().expect("invariant: sums of nothing are 0");
            self.forget(oldest, Gone::MadeRoom);
        }
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_age.values().map(|digest| &self.entries[digest])
    }

    /// Entries, tokens and bytes.
    pub(crate) fn size(&self) -> (usize, u64, u64) {
        (self.entries.len(), self.tokens, self.bytes)
    }

    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some((_, &digest)) = self.by_age.first_key_value() {
            if now_ms.saturating_sub(self.entries[&digest].stored_ms) < self.limits.ttl_ms {
                return;
            }
            self.forget(digest, Gone::Expired);
        }
    }

    fn forget(&mut self, digest: [u8; 32], why: Gone) {
        self.take(digest);
        if self.gone.len() == GONE_MAX {
            self.gone.pop_front();
        }
        self.gone.push_back((digest, why));
    }

    fn take(&mut self, digest: [u8; 32]) {
        let entry = self.entries.remove(&digest).expect("invariant: indices name entries");
        self.by_age.remove(&entry.age_tick);
        self.by_use.remove(&entry.use_tick);
        let (tokens, bytes) = size_of_entry(&entry.identity, &entry.answer);
        self.tokens -= tokens;
        self.bytes -= bytes;
    }

    /// Checks the sums, the indices and the limits.
    ///
    /// # Panics
    /// When one is wrong.
    pub(crate) fn audit(&self) {
        let (mut tokens, mut bytes) = (0, 0);
        for (digest, entry) in &self.entries {
            assert_eq!(*digest, entry.identity.digest, "an entry is under its own digest");
            assert_eq!(self.by_age.get(&entry.age_tick), Some(digest), "the age index");
            assert_eq!(self.by_use.get(&entry.use_tick), Some(digest), "the use index");
            let (more_tokens, more_bytes) = size_of_entry(&entry.identity, &entry.answer);
            tokens += more_tokens;
            bytes += more_bytes;
        }
        let count = self.entries.len();
        assert_eq!((self.by_age.len(), self.by_use.len()), (count, count), "indices of nothing");
        assert_eq!((tokens, bytes), (self.tokens, self.bytes), "the sums");
        assert!(self.gone.len() <= GONE_MAX, "sharing_bounded: {} gone", self.gone.len());
        assert!(count <= self.limits.entries_max, "sharing_bounded: {count} entries");
        assert!(tokens <= self.limits.tokens_max, "sharing_bounded: {tokens} tokens");
        assert!(bytes <= self.limits.bytes_max, "sharing_bounded: {bytes} bytes");
    }
}

fn size_of_entry(identity: &Identity, answer: &Answer) -> (u64, u64) {
    let stop = match &answer.end {
        AnswerEnd::Stop | AnswerEnd::Length => 0,
        AnswerEnd::StopText(rule) => rule.texts.iter().map(|text| text.len() + 24).sum(),
    };
    let bytes = identity.text.len() + answer.bytes() + stop;
    (answer.tokens.len() as u64, bytes as u64 + ENTRY_BYTES)
}
