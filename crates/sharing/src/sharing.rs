//! What becomes of a request: told, joined or computed? The whole state of one loaded model.

use std::sync::Arc;

use messages::{FinishReason, SequenceId, SubscriberId, TokenEvent};

use crate::answer::{Answer, AnswerEnd, AnswerToken, Asked, StopRule};
use crate::identity::Identity;
use crate::replay_cache::{Gone, ReplayCache, ReplayLimits};
use crate::running::{Alone, Reader, Running, finishes};
use crate::{FileKey, FileProblem, file_format};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharingLimits {
    /// Readers of one sequence; the next starts its own.
    pub subscribers_max: usize,
    pub replay: ReplayLimits,
}

/// What is there for a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Its whole answer.
    Known {
        answer: Answer,
        /// The first so many tokens are the request's answer.
        count: usize,
        /// `None`: its reader finds a stop text after the last.
        finish: Option<FinishReason>,
        /// Whether it was remembered; else it is the beginning of one that runs.
        is_replay: bool,
        why: String,
    },
    /// A sequence whose coming tokens it is told too, after these.
    Joined { sequence: SequenceId, told: Arc<[AnswerToken]>, why: String },
    /// Nothing: it is to run, and to [`Sharing::begin`].
    Nothing { why: String },
}

/// What a subscriber of the sequence is told with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub subscriber: SubscriberId,
    pub finish: Option<FinishReason>,
}

/// Why a subscriber leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It went away.
    Gone,
    /// Its stop text ended its answer after so many tokens.
    StopText { tokens: usize },
}

/// What is there now, and what happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub hits_total: u64,
    pub joins_total: u64,
    pub misses_total: u64,
    /// Tokens told that were computed for another request.
    pub tokens_shared_total: u64,
    pub replay_entries: usize,
    pub replay_tokens: u64,
    pub replay_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Sharing {
    limits: SharingLimits,
    running: Running,
    replay: ReplayCache,
    counts: Counts,
}

impl Sharing {
    pub fn new(limits: SharingLimits) -> Self {
        Self {
            limits,
            running: Running::default(),
            replay: ReplayCache::new(limits.replay),
            counts: Counts::default(),
        }
    }

    /// Holds other limits from now on; what has no room is forgotten, and readers stay.
    pub fn set_limits(&mut self, limits: SharingLimits, now_ms: u64) {
        self.limits = limits;
        self.replay.set_limits(limits.replay, now_ms);
    }

    /// Looks for an answer; one that is joined has the subscriber from now on.
    pub fn find(&mut self, subscriber: SubscriberId, asked: &Asked, now_ms: u64) -> Found {
        let shorter = match self.replayed(asked, now_ms) {
            Ok(found) => return found,
            Err(shorter) => shorter,
        };
        match self.running.joinable(asked, self.limits.subscribers_max) {
            Ok((id, _)) => self.join(id, subscriber, asked),
            Err(alone) => {
                self.counts.misses_total += 1;
                let gone = self.replay.gone(&asked.identity);
                let asked = asked.tokens_max;
                let why = match (alone, shorter) {
                    (Alone::AllFull, _) => format!(
                        "identical requests run with {} readers each, the most there may be",
                        self.limits.subscribers_max
                    ),
                    (Alone::AllShorter(most), _) => format!(
                        "an identical request runs for {most} tokens, {asked} are asked for"
                    ),
                    (Alone::NoneRuns, Some(known)) => {
                        format!("{known} tokens are remembered, {asked} are asked for")
                    }
                    (Alone::NoneRuns, None) => unknown(gone, &self.limits.replay),
                };
                Found::Nothing { why }
            }
        }
    }

    /// Whether something of a request runs or is remembered; it may be too little for one.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.running.knows(identity) || self.replay.knows(identity)
    }

    /// The remembered answer, or how many tokens of it are.
    fn replayed(&mut self, asked: &Asked, now_ms: u64) -> Result<Found, Option<usize>> {
        let entry = self.replay.get(&asked.identity, now_ms).ok_or(None)?;
        let known = entry.answer.tokens.len();
        let (count, finish) =
            entry.answer.serves(asked.tokens_max, &asked.stop).ok_or(Some(known))?;
        let answer = entry.answer.clone();
        let age_ms = now_ms.saturating_sub(entry.stored_ms);
        let why = format!("answered {}.{} s ago", age_ms / 1000, age_ms % 1000 / 100);
        self.replay.touch(&asked.identity);
        self.counts.hits_total += 1;
        self.counts.tokens_shared_total += count as u64;
        Ok(Found::Known { answer, count, finish, is_replay: true, why })
    }

    fn join(&mut self, id: SequenceId, subscriber: SubscriberId, asked: &Asked) -> Found {
        let sequence = self.running.get_mut(id).expect("invariant: the caller saw it run");
        let told: Arc<[AnswerToken]> = sequence.log.as_slice().into();
        let why = format!("an identical request runs and is {} tokens ahead", told.len());
        self.counts.joins_total += 1;
        if told.len() >= asked.tokens_max as usize {
            let count = asked.tokens_max as usize;
            self.counts.tokens_shared_total += count as u64;
            let answer = Answer { tokens: told, end: AnswerEnd::Length };
            let finish = Some(FinishReason::Length);
            return Found::Known { answer, count, finish, is_replay: false, why };
        }
        self.counts.tokens_shared_total += told.len() as u64;
        let reader = Reader { tokens_max: asked.tokens_max, stop: asked.stop.clone() };
        self.running.add_reader(id, subscriber, reader);
        Found::Joined { sequence: id, told, why }
    }

    /// A sequence starts for its first subscriber; without an identity, for it alone.
    pub fn begin(
        &mut self,
        sequence: SequenceId,
        subscriber: SubscriberId,
        tokens_max: u32,
        shared: Option<(Identity, StopRule)>,
    ) {
        let (identity, stop) = match shared {
            Some((identity, stop)) => (Some(identity), stop),
            None => (None, StopRule::default()),
        };
        self.running.begin(sequence, identity, tokens_max);
        self.running.add_reader(sequence, subscriber, Reader { tokens_max, stop });
    }

    /// Takes in a token and appends what each subscriber is told with it. `true`: nobody wants
    /// more of the sequence, which has not ended; it is forgotten here and to be cancelled. What
    /// the same step brings of it still is told to nobody.
    pub fn say(&mut self, event: &TokenEvent, now_ms: u64, told: &mut Vec<Told>) -> bool {
        let id = event.sequence;
        let Some(sequence) = self.running.get_mut(id) else { return false };
        sequence.told += 1;
        if sequence.identity.is_some() {
            let logprob = event.logprob.clone();
            sequence.log.push(AnswerToken { id: event.token, logprob });
        }
        let first = told.len();
        told.extend(
            finishes(sequence, event.finish)
                .map(|(subscriber, finish)| Told { subscriber, finish }),
        );
        self.counts.tokens_shared_total += (told.len() - first - 1) as u64;
        if event.finish.is_some() {
            let end = match event.finish {
                Some(FinishReason::Stop) => AnswerEnd::Stop,
                Some(FinishReason::Length | FinishReason::Cancelled) | None => AnswerEnd::Length,
            };
            self.finish(id, end, now_ms);
            return false;
        }
        for told in &told[first..] {
            if told.finish.is_some() {
                self.running.remove_reader(told.subscriber);
            }
        }
        let is_over = !self.running.get_mut(id).is_some_and(|sequence| sequence.wants());
        if is_over {
            self.finish(id, AnswerEnd::Length, now_ms);
        }
        is_over
    }

    /// A sequence has told all that anybody wants: remembers it.
    fn finish(&mut self, id: SequenceId, end: AnswerEnd, now_ms: u64) {
        let sequence = self.running.remove(id).expect("invariant: the caller saw it run");
        if let Some(identity) = sequence.identity {
            let answer = Answer { tokens: sequence.log.into(), end };
            self.replay.insert(identity, answer, now_ms);
        }
    }

    /// A subscriber leaves. `Some`: it was the last, the sequence is forgotten here and to be
    /// cancelled. One that is not here was told its last token before, which is no error.
    pub fn leave(
        &mut self,
        subscriber: SubscriberId,
        leaving: Leaving,
        now_ms: u64,
    ) -> Option<SequenceId> {
        let (id, reader) = self.running.remove_reader(subscriber)?;
        let sequence = self.running.get_mut(id).expect("invariant: a reader's sequence runs");
        if let (Leaving::StopText { tokens }, Some(identity)) = (leaving, &sequence.identity) {
            let tokens = sequence.log[..tokens].into();
            let answer = Answer { tokens, end: AnswerEnd::StopText(reader.stop) };
            self.replay.insert(identity.clone(), answer, now_ms);
        }
        if sequence.wants() {
            return None;
        }
        self.running.remove(id);
        Some(id)
    }

    /// A sequence broke: its subscribers, who are to be told so. Nothing of it is remembered.
    pub fn fail(&mut self, id: SequenceId) -> Vec<SubscriberId> {
        let sequence = self.running.remove(id);
        sequence.map_or_else(Vec::new, |sequence| sequence.readers.into_keys().collect())
    }

    /// Everybody who reads.
    pub fn subscribers(&self) -> impl Iterator<Item = SubscriberId> {
        self.running.readers()
    }

    pub fn counts(&self) -> Counts {
        let (replay_entries, replay_tokens, replay_bytes) = self.replay.size();
        Counts { replay_entries, replay_tokens, replay_bytes, ..self.counts }
    }

    /// The remembered answers as the bytes of a file.
    pub fn to_file(&self, key: &FileKey) -> Vec<u8> {
        file_format::write(key, self.replay.iter())
    }

    /// Remembers the answers of a file that [`Sharing::to_file`] wrote, before any other; gives
    /// their number.
    ///
    /// # Errors
    /// [`FileProblem`]: nothing of the file is remembered.
    pub fn read_file(
        &mut self,
        bytes: &[u8],
        key: &FileKey,
        now_ms: u64,
    ) -> Result<usize, FileProblem> {
        for (identity, answer, stored_ms) in file_format::read(bytes, key)? {
            // Stored in the future: by another clock. It gets old from now on.
            self.replay.insert(identity, answer, stored_ms.min(now_ms));
        }
        self.replay.expire(now_ms);
        Ok(self.replay.size().0)
    }

    /// Checks every invariant that can be seen from here.
    ///
    /// # Panics
    /// When one is broken.
    pub fn audit(&self) {
        self.running.audit(self.limits.subscribers_max);
        self.replay.audit();
    }
}

/// Why nothing of a request runs or is remembered.
fn unknown(gone: Option<Gone>, limits: &ReplayLimits) -> String {
    let none = "no identical request runs or is remembered";
    match gone {
        None => none.to_owned(),
        Some(Gone::Expired) => {
            let seconds = limits.ttl_ms / 1000;
            format!("{none}: its answer was forgotten, as all are after {seconds} s")
        }
        Some(Gone::MadeRoom) => format!("{none}: its answer made room for others"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two different requests with one hash, as nobody can make them.
    fn colliding(text: &[u8]) -> Identity {
        Identity { digest: [9; 32], text: text.into() }
    }

    fn asked(text: &[u8]) -> Asked {
        Asked { identity: colliding(text), tokens_max: 2, stop: StopRule::default() }
    }

    fn run(sharing: &mut Sharing, id: u64, text: &[u8], token: u32) {
        let shared = Some((colliding(text), StopRule::default()));
        sharing.begin(SequenceId(id), SubscriberId(id), 1, shared);
        let finish = Some(FinishReason::Stop);
        let event = TokenEvent {
            sequence: SequenceId(id),
            token,
            logprob: None,
            finish,
            cached: Default::default(),
            proposals: Default::default(),
        };
        assert!(!sharing.say(&event, 0, &mut Vec::new()));
    }

    #[test]
    fn a_collision_shares_nothing() {
        let replay =
            ReplayLimits { entries_max: 8, tokens_max: 100, bytes_max: 1 << 20, ttl_ms: 1000 };
        let mut sharing = Sharing::new(SharingLimits { subscribers_max: 8, replay });
        let is_known = |sharing: &mut Sharing, text| {
            let found = sharing.find(SubscriberId(99), &asked(text), 0);
            matches!(found, Found::Known { .. })
        };
        sharing.begin(
            SequenceId(1),
            SubscriberId(1),
            2,
            Some((colliding(b"a"), StopRule::default())),
        );
        let found = sharing.find(SubscriberId(2), &asked(b"b"), 0);
        assert!(matches!(found, Found::Nothing { .. }), "{found:?}");
        run(&mut sharing, 3, b"b", 5);
        assert!(is_known(&mut sharing, b"b") && !is_known(&mut sharing, b"c"));
        run(&mut sharing, 4, b"c", 6);
        assert!(is_known(&mut sharing, b"c") && !is_known(&mut sharing, b"b"));
        sharing.audit();
    }

    #[test]
    fn what_is_forgotten_is_told_apart_from_what_was_never_known() {
        let replay =
            ReplayLimits { entries_max: 1, tokens_max: 100, bytes_max: 1 << 20, ttl_ms: 1000 };
        let mut sharing = Sharing::new(SharingLimits { subscribers_max: 8, replay });
        let identity = |text: &[u8]| Identity::from_text(text.into());
        let why = |sharing: &mut Sharing, text: &[u8], now_ms| {
            let asked =
                Asked { identity: identity(text), tokens_max: 2, stop: StopRule::default() };
            match sharing.find(SubscriberId(99), &asked, now_ms) {
                Found::Nothing { why } => why,
                found => panic!("{found:?}"),
            }
        };
        let none = "no identical request runs or is remembered";
        assert_eq!(why(&mut sharing, b"a", 0), none);
        for (id, text) in [(1, b"a"), (2, b"b")] {
            let shared = Some((identity(text), StopRule::default()));
            sharing.begin(SequenceId(id), SubscriberId(id), 1, shared);
            let event = TokenEvent {
                sequence: SequenceId(id),
                token: 5,
                logprob: None,
                finish: Some(FinishReason::Stop),
                cached: Default::default(),
                proposals: Default::default(),
            };
            sharing.say(&event, 0, &mut Vec::new());
        }
        let room = format!("{none}: its answer made room for others");
        assert_eq!(why(&mut sharing, b"a", 10), room);
        let late = format!("{none}: its answer was forgotten, as all are after 1 s");
        assert_eq!(why(&mut sharing, b"b", 1000), late);
        assert_eq!(why(&mut sharing, b"c", 1000), none);
        sharing.audit();
    }
}
