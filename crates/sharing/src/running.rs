//! Who reads which running sequence, and how far is each told?

use std::collections::BTreeMap;

use messages::{FinishReason, SequenceId, SubscriberId};

use crate::answer::{AnswerToken, Asked, StopRule};
use crate::identity::Identity;

/// One sequence and those who read it.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// `None`: one reader, nobody joins, nothing is remembered.
    pub(crate) identity: Option<Identity>,
    /// What was told so far; empty without an identity.
    pub(crate) log: Vec<AnswerToken>,
    /// Tokens told so far.
    pub(crate) told: usize,
    pub(crate) tokens_max: u32,
    pub(crate) readers: BTreeMap<SubscriberId, Reader>,
}

#[derive(Clone, Debug)]
pub(crate) struct Reader {
    /// Fewer than the sequence's where it asked for fewer.
    pub(crate) tokens_max: u32,
    pub(crate) stop: StopRule,
}

/// All running sequences. A reader reads one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    sequences: BTreeMap<SequenceId, Sequence>,
    by_reader: BTreeMap<SubscriberId, SequenceId>,
    /// Those that may be joined, oldest first.
    by_identity: BTreeMap<[u8; 32], Vec<SequenceId>>,
}

/// Why no running sequence can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alone {
    NoneRuns,
    /// All that run end before as many tokens as were asked for; the longest after so many.
    AllShorter(u32),
    AllFull,
}

impl Running {
    /// A sequence whose tokens are those of `asked`, as many or more, with room for a reader.
    pub(crate) fn joinable(
        &self,
        asked: &Asked,
        readers_max: usize,
    ) -> Result<(SequenceId, &Sequence), Alone> {
        let ids = self.by_identity.get(&asked.identity.digest).map_or(&[][..], Vec::as_slice);
        let mut alone = Alone::NoneRuns;
        for &id in ids {
            let sequence = &self.sequences[&id];
            if sequence.identity.as_ref() != Some(&asked.identity) {
                continue;
            }
            if sequence.tokens_max < asked.tokens_max {
                alone = match alone {
                    Alone::NoneRuns => Alone::AllShorter(sequence.tokens_max),
                    Alone::AllShorter(most) => Alone::AllShorter(most.max(sequence.tokens_max)),
                    Alone::AllFull => Alone::AllFull,
                };
            } else if sequence.readers.len() >= readers_max {
                alone = Alone::AllFull;
            } else {
                return Ok((id, sequence));
            }
        }
        Err(alone)
    }

    pub(crate) fn knows(&self, identity: &Identity) -> bool {
        self.by_identity.contains_key(&identity.digest)
    }

    pub(crate) fn begin(&mut self, id: SequenceId, identity: Option<Identity>, tokens_max: u32) {
        if let Some(identity) = &identity {
            self.by_identity.entry(identity.digest).or_default().push(id);
        }
        let readers = BTreeMap::new();
        let sequence = Sequence { identity, log: Vec::new(), told: 0, tokens_max, readers };
        assert!(self.sequences.insert(id, sequence).is_none(), "{id:?} runs already");
    }

    pub(crate) fn add_reader(&mut self, id: SequenceId, subscriber: SubscriberId, reader: Reader) {
        assert!(self.by_reader.insert(subscriber, id).is_none(), "{subscriber:?} reads already");
        let sequence = self.sequences.get_mut(&id).expect("invariant: the caller saw it run");
        sequence.readers.insert(subscriber, reader);
    }

    pub(crate) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.get_mut(&id)
    }

    /// Takes a reader out; gives its sequence and what it asked.
    pub(crate) fn remove_reader(
        &mut self,
        subscriber: SubscriberId,
    ) -> Option<(SequenceId, Reader)> {
        let id = self.by_reader.remove(&subscriber)?;
        let sequence = self.sequences.get_mut(&id).expect("invariant: a reader's sequence runs");
        let reader = sequence.readers.remove(&subscriber);
        Some((id, reader.expect("invariant: both maps hold a reader")))
    }

    /// Takes a sequence out, and all its readers.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = self.sequences.remove(&id)?;
        for subscriber in sequence.readers.keys() {
            self.by_reader.remove(subscriber);
        }
        if let Some(identity) = &sequence.identity {
            let ids = self.by_identity.get_mut(&identity.digest);
            let ids = ids.expect("invariant: a joinable sequence is under its identity");
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_identity.remove(&identity.digest);
            }
        }
        Some(sequence)
    }

    pub(crate) fn readers(&self) -> impl Iterator<Item = SubscriberId> {
        self.by_reader.keys().copied()
    }

    /// # Panics
    /// When the maps disagree.
    pub(crate) fn audit(&self, readers_max: usize) {
        let mut readers = 0;
        for (id, sequence) in &self.sequences {
            assert!(!sequence.readers.is_empty(), "{id:?} runs for nobody");
            let count = sequence.readers.len();
            assert!(count <= readers_max.max(1), "sharing_bounded: {count} readers of {id:?}");
            assert!(sequence.identity.is_some() || count == 1, "{id:?} is shared unasked");
            for (subscriber, reader) in &sequence.readers {
                assert_eq!(self.by_reader.get(subscriber), Some(id), "{subscriber:?} reads it");
                assert!(reader.tokens_max <= sequence.tokens_max, "{subscriber:?} asks for more");
            }
            readers += count;
            let indexed = sequence.identity.as_ref().is_none_or(|identity| {
                self.by_identity.get(&identity.digest).is_some_and(|ids| ids.contains(id))
            });
            assert!(indexed, "{id:?} can be found by its identity");
        }
        assert_eq!(readers, self.by_reader.len(), "each reader reads one sequence");
        let indexed: usize = self.by_identity.values().map(Vec::len).sum();
        let joinable = self.sequences.values().filter(|sequence| sequence.identity.is_some());
        assert_eq!(indexed, joinable.count(), "the index names running sequences");
    }
}

impl Sequence {
    /// The most that any reader still wants.
    pub(crate) fn wants(&self) -> bool {
        !self.readers.is_empty()
    }
}

/// How the readers of a sequence end with its latest token.
pub(crate) fn finishes(
    sequence: &Sequence,
    finish: Option<FinishReason>,
) -> impl Iterator<Item = (SubscriberId, Option<FinishReason>)> {
    let count = sequence.told;
    sequence.readers.iter().map(move |(&subscriber, reader)| {
        (subscriber, crate::answer::finish_for(count, reader.tokens_max, finish))
    })
}
