//! Who is told what a sequence says? One request or, where they ask for the same, several.
//!
//! What is the same, who may join and what is remembered is decided in `sharing`; here are the
//! outboxes and the clock. An outbox needs no bound of its own: a reader is told at most
//! as many tokens as were admitted for it, and one fault. Nothing waits for a reader: one that
//! reads slowly finds its tokens in its outbox, one that has gone is known to have left by an
//! event.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use messages::{
    CachedPrompt, Fault, FinishReason, ProposalCounts, Refusal, SequenceId, SharingOutcome,
    SharingReport, SubscriberId, TokenEvent,
};
use sharing::{
    AnswerToken, Asked, FileKey, Fingerprint, Found, Identity, Leaving, ReplayLimits, Sharing,
    SharingLimits, StopRule, Told,
};

use crate::answers_file::AnswersFile;
use crate::executor::Broken;
use crate::outbox::Outbox;
use crate::{Deadline, EngineError, ModelCard, QueueReport, SharingStatus};

/// How much is shared between identical requests, and remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharingOptions {
    pub limits: SharingLimits,
    /// Where the remembered answers outlast the process; `None`: nowhere.
    pub folder: Option<PathBuf>,
}

impl Default for SharingOptions {
    fn default() -> Self {
        // An answer token takes 40 bytes: 2^20 of them, 40 MiB, and as much again for requests
        // and log-probabilities.
        let replay = ReplayLimits {
            entries_max: 1024,
            tokens_max: 1 << 20,
            bytes_max: 80 << 20,
            ttl_ms: 300_000,
        };
        Self { limits: SharingLimits { subscribers_max: 256, replay }, folder: None }
    }
}

/// What one stream gets.
pub(crate) enum Outgoing {
    /// Its sequence has a place: the first word to each.
    Started(QueueReport),
    /// It waited too long for one, or cannot be served as written.
    Refused(Refusal),
    Token {
        token: AnswerToken,
        /// When its step was over.
        at: Instant,
        finish: Option<FinishReason>,
        /// Of the sequence's prompt: found in the KV cache.
        cached: CachedPrompt,
        /// What became of guesses since the token before.
        proposals: ProposalCounts,
    },
    Known(Known),
    /// Before the last token of an answer that is one.
    Vector(Box<[f32]>),
    Failed(Fault),
    Late(Deadline),
}

/// The beginning or all of an answer, told at once.
pub(crate) struct Known {
    pub(crate) tokens: Arc<[AnswerToken]>,
    /// The first so many are meant; at least one.
    pub(crate) count: usize,
    /// Of the last of them; `None`: more follows, or the reader finds a stop text.
    pub(crate) finish: Option<FinishReason>,
}

/// An answer that another request's is, too.
pub(crate) struct Shared {
    pub(crate) report: SharingReport,
    /// All that is known of it: to be told first.
    pub(crate) known: Option<Known>,
    /// The sequence that says the rest.
    pub(crate) reads: Option<SequenceId>,
}

/// What may be shared of a request.
pub(crate) enum Shareable {
    /// Nothing, and why.
    No(String),
    Yes {
        identity: Identity,
        stop: StopRule,
        /// It is computed anew, for others too.
        is_fresh: bool,
    },
}

/// One who is told an answer.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) outbox: Outbox,
    pub(crate) deadline: Option<Deadline>,
}

pub(crate) struct Readers {
    sharing: Sharing,
    outboxes: BTreeMap<SubscriberId, Reader>,
    told: Vec<Told>,
    unshared_total: u64,
    clock: Clock,
    file: Option<AnswersFile>,
}

/// Milliseconds since 1970 as they were at the start, and those that went by since: a clock that
/// is set changes nothing.
struct Clock {
    start_ms: u64,
    started: Instant,
}

impl Clock {
    fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { start_ms: milliseconds(since_1970), started: Instant::now() }
    }

    fn now_ms(&self) -> u64 {
        self.start_ms + milliseconds(self.started.elapsed())
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

impl Readers {
    /// `None`: every request is read by its own caller, and nothing is remembered.
    ///
    /// # Errors
    /// When there can be no folder for the answers.
    pub(crate) fn new(
        options: Option<&SharingOptions>,
        model: Fingerprint,
        card: &ModelCard,
    ) -> Result<Self, EngineError> {
        let options = options.cloned().unwrap_or_default();
        let key = FileKey { model, vocabulary_size: card.vocabulary_size };
        let bytes_max = options.limits.replay.bytes_max;
        let file = options.folder.map(|folder| AnswersFile::new(&folder, &card.id, key, bytes_max));
        let mut readers = Self {
            sharing: Sharing::new(options.limits),
            outboxes: BTreeMap::new(),
            told: Vec::new(),
            unshared_total: 0,
            clock: Clock::start(),
            file: file.transpose()?,
        };
        if let Some(file) = &readers.file {
            file.read_into(&mut readers.sharing, readers.clock.now_ms());
        }
        Ok(readers)
    }

    pub(crate) fn set_limits(&mut self, limits: SharingLimits) {
        self.sharing.set_limits(limits, self.clock.now_ms());
    }

    /// Whether something of an identical request runs or is remembered, much or little.
    pub(crate) fn has_answer(&self, shareable: &Shareable) -> bool {
        match shareable {
            Shareable::No(_) | Shareable::Yes { is_fresh: true, .. } => false,
            Shareable::Yes { identity, .. } => self.sharing.knows(identity),
        }
    }

    /// Finds or promises a request its answer, if somebody else's is the same; else why not.
    pub(crate) fn find(
        &mut self,
        subscriber: SubscriberId,
        shareable: &Shareable,
        tokens_max: u32,
        reader: &Reader,
    ) -> Result<Shared, String> {
        let (identity, stop) = match shareable {
            Shareable::No(why) => {
                self.unshared_total += 1;
                return Err(why.clone());
            }
            Shareable::Yes { is_fresh: true, .. } => {
                self.unshared_total += 1;
                return Err("the request asks to be computed anew".to_owned());
            }
            Shareable::Yes { identity, stop, is_fresh: false } => (identity, stop),
        };
        let asked = Asked { identity: identity.clone(), tokens_max, stop: stop.clone() };
        match self.sharing.find(subscriber, &asked, self.clock.now_ms()) {
            Found::Known { answer, count, finish, is_replay, why } => {
                let known = Some(Known { tokens: answer.tokens, count, finish });
                let outcome = if is_replay { SharingOutcome::Hit } else { SharingOutcome::Joined };
                Ok(Shared { report: SharingReport { outcome, why }, known, reads: None })
            }
            Found::Joined { sequence, told, why, .. } => {
                let count = told.len();
                let known = (count > 0).then_some(Known { tokens: told, count, finish: None });
                self.outboxes.insert(subscriber, reader.clone());
                let report = SharingReport { outcome: SharingOutcome::Joined, why };
                Ok(Shared { report, known, reads: Some(sequence) })
            }
            Found::Nothing { why } => Err(why),
        }
    }

    /// A sequence starts for the request.
    pub(crate) fn begin(
        &mut self,
        sequence: SequenceId,
        subscriber: SubscriberId,
        shareable: Shareable,
        tokens_max: u32,
        reader: Reader,
    ) {
        let shared = match shareable {
            Shareable::No(_) => None,
            Shareable::Yes { identity, stop, .. } => Some((identity, stop)),
        };
        self.sharing.begin(sequence, subscriber, tokens_max, shared);
        self.outboxes.insert(subscriber, reader);
    }

    /// The next moment at which [`Readers::late`] has something to say.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines().map(|(_, deadline)| deadline.at).min()
    }

    /// A reader whose deadline has passed. There are at most as many readers as requests are
    /// admitted, so looking at all of them once a step is quick.
    pub(crate) fn late(&self, now: Instant) -> Option<SubscriberId> {
        self.deadlines().find(|(_, deadline)| deadline.at <= now).map(|(id, _)| id)
    }

    fn deadlines(&self) -> impl Iterator<Item = (SubscriberId, Deadline)> {
        self.outboxes.iter().filter_map(|(&id, reader)| Some((id, reader.deadline?)))
    }

    /// Tells a reader that its deadline has passed. `Some`: nobody reads the sequence any more.
    pub(crate) fn break_off(&mut self, subscriber: SubscriberId) -> Option<SequenceId> {
        if let Some(Reader { outbox, deadline: Some(deadline) }) = self.outboxes.get(&subscriber) {
            outbox.send(Outgoing::Late(*deadline));
        }
        self.leave(subscriber, Leaving::Gone)
    }

    /// Tells a token to all who read the sequence. `true`: nobody wants more of it.
    pub(crate) fn say(&mut self, event: &TokenEvent) -> bool {
        self.told.clear();
        let at = Instant::now();
        let is_unwanted = self.sharing.say(event, self.clock.now_ms(), &mut self.told);
        for told in &self.told {
            let token = AnswerToken { id: event.token, logprob: event.logprob.clone() };
            let outbox = &self.outboxes[&told.subscriber].outbox;
            let (finish, cached, proposals) = (told.finish, event.cached, event.proposals);
            outbox.send(Outgoing::Token { token, at, finish, cached, proposals });
            if told.finish.is_some() {
                self.outboxes.remove(&told.subscriber);
            }
        }
        is_unwanted
    }

    /// Gives a text's vector to the one who asked for it: vectors are not shared.
    pub(crate) fn give(&self, sequence: SequenceId, vector: Box<[f32]>) {
        if let Some(reader) = self.outboxes.get(&SubscriberId(sequence.0)) {
            reader.outbox.send(Outgoing::Vector(vector));
        }
    }

    /// A reader leaves. `Some`: nobody reads the sequence any more.
    pub(crate) fn leave(
        &mut self,
        subscriber: SubscriberId,
        leaving: Leaving,
    ) -> Option<SequenceId> {
        self.outboxes.remove(&subscriber);
        self.sharing.leave(subscriber, leaving, self.clock.now_ms())
    }

    /// Tells all who read the sequence that it broke.
    pub(crate) fn fail(&mut self, sequence: SequenceId, broken: &Broken) {
        for subscriber in self.sharing.fail(sequence) {
            if let Some(reader) = self.outboxes.remove(&subscriber) {
                reader.outbox.send(match broken {
                    Broken::Refusal(refusal) => Outgoing::Refused(refusal.clone()),
                    Broken::Fault(fault) => Outgoing::Failed(fault.clone()),
                });
            }
        }
    }

    /// Tells everybody that it is over.
    pub(crate) fn fail_all(&mut self, fault: &Fault) {
        for (_, reader) in std::mem::take(&mut self.outboxes) {
            reader.outbox.send(Outgoing::Failed(fault.clone()));
        }
    }

    pub(crate) fn status(&self) -> SharingStatus {
        let counts = self.sharing.counts();
        SharingStatus {
            hits_total: counts.hits_total,
            joins_total: counts.joins_total,
            misses_total: counts.misses_total,
            unshared_total: self.unshared_total,
            tokens_shared_total: counts.tokens_shared_total,
            replay_entries: counts.replay_entries as u64,
            replay_tokens: counts.replay_tokens,
            replay_bytes: counts.replay_bytes,
        }
    }

    /// Writes what is remembered to its file, if it has one.
    pub(crate) fn save(&self) {
        if let Some(file) = &self.file {
            file.write(&self.sharing);
        }
    }
}
