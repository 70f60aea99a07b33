//! Does every reader get what it would get alone, and does a naive twin agree on who is told, who
//! joins and who computes?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use messages::{
    CacheNamespace, FinishReason, SamplingParams, SequenceId, SubscriberId, TokenEvent,
};
use proptest::prelude::*;
use sharing::{
    Asked, FileKey, Found, Identity, Leaving, ReplayLimits, Sharing, SharingLimits, StopRule, Work,
};

const MODEL: [u8; 32] = [7; 32];
const VOCABULARY: u32 = 1000;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A request: which work, how many tokens at most, which stop text, whether it may be shared
    /// and whether it looks.
    Arrive {
        work: u32,
        tokens_max: u32,
        stop: u32,
        mode: u32,
    },
    /// A token of a running sequence.
    Step {
        which: usize,
    },
    Leave {
        which: usize,
    },
    Fail {
        which: usize,
    },
    Pass {
        ms: u64,
    },
    /// All is written to a file, forgotten and read again.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u32..5, 1u32..9, 0u32..3, 0u32..8)
            .prop_map(|(work, tokens_max, stop, mode)| Op::Arrive { work, tokens_max, stop, mode }),
        12 => (0usize..8).prop_map(|which| Op::Step { which }),
        2 => (0usize..8).prop_map(|which| Op::Leave { which }),
        1 => (0usize..8).prop_map(|which| Op::Fail { which }),
        2 => (1u64..60).prop_map(|ms| Op::Pass { ms }),
        1 => Just(Op::Restart),
    ]
}

/// The answer of a work, token by token; the stop token is the `length(work)`th.
fn token(work: u32, index: usize) -> u32 {
    work * 100 + index as u32
}

fn length(work: u32) -> usize {
    [3, 5, 6, 100, 100][work as usize]
}

/// After how many tokens a reader with this stop text finds it.
fn stop_after(work: u32, stop: u32) -> Option<usize> {
    (stop > 0).then_some((work + 2 * stop) as usize)
}

fn identity(work: u32) -> Identity {
    // Works 3 and 4 differ in the tenant alone.
    let tenant = if work == 4 { "b" } else { "a" }.to_owned();
    let namespace = CacheNamespace { tenant, ..CacheNamespace::default() };
    Identity::of(&Work {
        model: &MODEL,
        namespace: &namespace,
        prompt: &[work.min(3)],
        params: &SamplingParams::greedy(),
        stop_tokens: &[0],
    })
}

fn stop_rule(stop: u32) -> StopRule {
    let texts = if stop == 0 { Vec::new() } else { vec![format!("stop {stop}")] };
    StopRule { texts, min_tokens: 0 }
}

/// One request in the slow twin.
#[derive(Clone, Debug)]
struct Reader {
    subscriber: SubscriberId,
    tokens_max: u32,
    stop: u32,
    told: usize,
}

#[derive(Clone, Debug)]
struct Run {
    id: SequenceId,
    work: u32,
    tokens_max: u32,
    is_shared: bool,
    told: usize,
    readers: Vec<Reader>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum KnownEnd {
    Stop,
    Length,
    StopText(u32),
}

/// A remembered answer; the list is in order of use, oldest first.
#[derive(Clone, Debug)]
struct Known {
    work: u32,
    count: usize,
    end: KnownEnd,
    stored_ms: u64,
    /// Numbers them in the order they were remembered.
    age: u64,
}

/// The same rules over lists.
struct Naive {
    limits: SharingLimits,
    runs: Vec<Run>,
    known: Vec<Known>,
    remembered: u64,
}

impl Naive {
    fn remember(&mut self, work: u32, count: usize, end: KnownEnd, now_ms: u64) {
        self.expire(now_ms);
        if count > self.limits.replay.tokens_max as usize {
            return;
        }
        if let Some(at) = self.known.iter().position(|known| known.work == work) {
            if end != KnownEnd::Stop && count < self.known[at].count {
                return;
            }
            self.known.remove(at);
        }
        while self.known.len() >= self.limits.replay.entries_max
            || self.known.iter().map(|known| known.count).sum::<usize>() + count
                > self.limits.replay.tokens_max as usize
        {
            self.known.remove(0);
        }
        self.remembered += 1;
        let age = self.remembered;
        self.known.push(Known { work, count, end, stored_ms: now_ms, age });
    }

    fn expire(&mut self, now_ms: u64) {
        let ttl_ms = self.limits.replay.ttl_ms;
        self.known.retain(|known| now_ms - known.stored_ms < ttl_ms);
    }

    /// How many tokens are known for the request, and uses them.
    fn replay(&mut self, work: u32, tokens_max: u32, stop: u32, now_ms: u64) -> Option<usize> {
        self.expire(now_ms);
        let at = self.known.iter().position(|known| known.work == work)?;
        let known = self.known[at].clone();
        let count = match known.end {
            KnownEnd::Stop => known.count.min(tokens_max as usize),
            _ if tokens_max as usize <= known.count => tokens_max as usize,
            KnownEnd::StopText(cut) if cut == stop => known.count,
            KnownEnd::Length | KnownEnd::StopText(_) => return None,
        };
        self.known.remove(at);
        self.known.push(known);
        Some(count)
    }

    fn joinable(&mut self, work: u32, tokens_max: u32) -> Option<&mut Run> {
        let most = self.limits.subscribers_max;
        self.runs.iter_mut().find(|run| {
            run.is_shared
                && run.work == work
                && run.tokens_max >= tokens_max
                && run.readers.len() < most
        })
    }
}

struct World {
    sharing: Sharing,
    naive: Naive,
    now_ms: u64,
    ids: u64,
    outcomes: BTreeMap<&'static str, u32>,
}

impl World {
    fn new(limits: SharingLimits) -> Self {
        Self {
            sharing: Sharing::new(limits),
            naive: Naive { limits, runs: Vec::new(), known: Vec::new(), remembered: 0 },
            now_ms: 1_000,
            ids: 0,
            outcomes: BTreeMap::new(),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Arrive { work, tokens_max, stop, mode } => {
                self.arrive(work, tokens_max, stop, mode);
            }
            Op::Step { which } => self.step(which),
            Op::Leave { which } => self.leave(which),
            Op::Fail { which } => {
                if let Some(run) = pick(&self.naive.runs, which) {
                    let run = self.naive.runs.remove(run);
                    let told: Vec<SubscriberId> =
                        run.readers.iter().map(|reader| reader.subscriber).collect();
                    assert_eq!(self.sharing.fail(run.id), told, "all readers are told");
                }
            }
            Op::Pass { ms } => self.now_ms += ms,
            Op::Restart => self.restart(),
        }
        self.sharing.audit();
        let readers: usize = self.naive.runs.iter().map(|run| run.readers.len()).sum();
        assert_eq!(self.sharing.subscribers().count(), readers);
    }

    fn arrive(&mut self, work: u32, tokens_max: u32, stop: u32, mode: u32) {
        self.ids += 1;
        let (subscriber, id) = (SubscriberId(self.ids), SequenceId(self.ids));
        let (looks, is_shared) = (mode > 1, mode > 0);
        if looks && self.find(subscriber, work, tokens_max, stop) {
            return;
        }
        let shared = is_shared.then(|| (identity(work), stop_rule(stop)));
        self.sharing.begin(id, subscriber, tokens_max, shared);
        let readers = vec![Reader { subscriber, tokens_max, stop, told: 0 }];
        self.naive.runs.push(Run { id, work, tokens_max, is_shared, told: 0, readers });
    }

    /// Whether something was there, the same for both.
    fn find(&mut self, subscriber: SubscriberId, work: u32, tokens_max: u32, stop: u32) -> bool {
        let asked = Asked { identity: identity(work), tokens_max, stop: stop_rule(stop) };
        let found = self.sharing.find(subscriber, &asked, self.now_ms);
        let expected = self.naive.replay(work, tokens_max, stop, self.now_ms);
        if let Some(expected) = expected {
            let Found::Known { answer, count, finish, is_replay: true, .. } = found else {
                panic!("{expected} tokens are remembered: {found:?}")
            };
            assert_eq!(count, expected);
            self.check_whole(work, tokens_max, stop, &ids(&answer.tokens[..count]), finish);
            *self.outcomes.entry("hit").or_default() += 1;
            return true;
        }
        let Some(run) = self.naive.joinable(work, tokens_max) else {
            assert!(matches!(found, Found::Nothing { .. }), "nothing is there: {found:?}");
            *self.outcomes.entry("miss").or_default() += 1;
            return false;
        };
        *self.outcomes.entry("joined").or_default() += 1;
        match found {
            Found::Joined { sequence, told, .. } => {
                assert_eq!(sequence, run.id);
                assert_eq!(told.len(), run.told);
                assert!(run.told < tokens_max as usize, "else its answer is whole");
                let mut reader = Reader { subscriber, tokens_max, stop, told: 0 };
                reader.told = told.len();
                run.readers.push(reader);
                let alone: Vec<u32> = (0..told.len()).map(|index| token(work, index)).collect();
                assert_eq!(ids(&told), alone);
                // As the outlet does: it reads what was told, and may find its stop text there.
                let index = self.naive.runs.iter().position(|run| run.id == sequence).unwrap();
                self.read(index, subscriber, None);
                true
            }
            Found::Known { answer, count, finish, is_replay: false, .. } => {
                assert!(run.told >= tokens_max as usize);
                self.check_whole(work, tokens_max, stop, &ids(&answer.tokens[..count]), finish);
                true
            }
            other => panic!("a sequence can be joined: {other:?}"),
        }
    }

    fn check_whole(
        &self,
        work: u32,
        tokens_max: u32,
        stop: u32,
        told: &[u32],
        finish: Option<FinishReason>,
    ) {
        let alone: Vec<u32> = (0..told.len()).map(|index| token(work, index)).collect();
        assert_eq!(told, alone);
        let end = length(work).min(tokens_max as usize);
        let by_text = stop_after(work, stop).filter(|&after| after <= told.len());
        let expected = match (told.len() == length(work), told.len() == tokens_max as usize) {
            (true, _) => Some(FinishReason::Stop),
            (false, true) => Some(FinishReason::Length),
            (false, false) => None,
        };
        assert_eq!(finish, expected);
        assert!(told.len() == end || by_text.is_some(), "{told:?} is not all of {end}");
    }

    fn step(&mut self, which: usize) {
        let Some(index) = pick(&self.naive.runs, which) else { return };
        let run = &mut self.naive.runs[index];
        run.told += 1;
        let (id, work, told) = (run.id, run.work, run.told);
        let finish = if told == length(work) {
            Some(FinishReason::Stop)
        } else {
            (told == run.tokens_max as usize).then_some(FinishReason::Length)
        };
        let event = TokenEvent {
            sequence: id,
            token: token(work, told - 1),
            logprob: None,
            finish,
            cached: Default::default(),
            proposals: Default::default(),
        };
        let mut tells = Vec::new();
        let is_over = self.sharing.say(&event, self.now_ms, &mut tells);
        assert_eq!(tells.len(), run.readers.len(), "each reader is told");
        let mut left = Vec::new();
        for (tell, reader) in tells.iter().zip(&mut run.readers) {
            assert_eq!(tell.subscriber, reader.subscriber);
            reader.told += 1;
            assert_eq!(reader.told, told, "no reader is behind the sequence");
            let is_last = told == reader.tokens_max as usize;
            let alone = if finish == Some(FinishReason::Stop) {
                finish
            } else {
                is_last.then_some(FinishReason::Length)
            };
            assert_eq!(tell.finish, alone);
            if tell.finish.is_none() {
                left.push(reader.subscriber);
            }
        }
        run.readers.retain(|reader| left.contains(&reader.subscriber));
        let end =
            if finish == Some(FinishReason::Stop) { KnownEnd::Stop } else { KnownEnd::Length };
        assert_eq!(is_over, run.readers.is_empty() && finish.is_none());
        if run.readers.is_empty() {
            let run = self.naive.runs.remove(index);
            if run.is_shared {
                self.naive.remember(work, told, end, self.now_ms);
            }
            return;
        }
        for subscriber in left {
            let Some(index) = self.naive.runs.iter().position(|run| run.id == id) else { return };
            self.read(index, subscriber, Some(told));
        }
    }

    /// A reader looks for its stop text in what it was told: after `fresh` tokens, or in all.
    fn read(&mut self, index: usize, subscriber: SubscriberId, fresh: Option<usize>) {
        let run = &mut self.naive.runs[index];
        let at = run.readers.iter().position(|reader| reader.subscriber == subscriber).unwrap();
        let reader = &run.readers[at];
        let Some(tokens) = stop_after(run.work, reader.stop) else { return };
        if fresh.is_some_and(|fresh| fresh != tokens) || tokens > run.told {
            return;
        }
        let stop = reader.stop;
        let (id, work, is_shared) = (run.id, run.work, run.is_shared);
        run.readers.remove(at);
        let is_last = run.readers.is_empty();
        if is_shared {
            self.naive.remember(work, tokens, KnownEnd::StopText(stop), self.now_ms);
        }
        if is_last {
            self.naive.runs.remove(index);
        }
        let over = self.sharing.leave(subscriber, Leaving::StopText { tokens }, self.now_ms);
        assert_eq!(over, is_last.then_some(id));
    }

    fn leave(&mut self, which: usize) {
        let Some(index) = pick(&self.naive.runs, which) else { return };
        let run = &mut self.naive.runs[index];
        let (id, reader) = (run.id, run.readers.remove(0));
        let is_last = run.readers.is_empty();
        if is_last {
            self.naive.runs.remove(index);
        }
        let over = self.sharing.leave(reader.subscriber, Leaving::Gone, self.now_ms);
        assert_eq!(over, is_last.then_some(id), "the sequence ends with its last reader");
        let again = self.sharing.leave(reader.subscriber, Leaving::Gone, self.now_ms);
        assert_eq!(again, None, "twice changes nothing");
    }

    fn restart(&mut self) {
        let key = FileKey { model: MODEL, vocabulary_size: VOCABULARY };
        let bytes = self.sharing.to_file(&key);
        self.sharing = Sharing::new(self.naive.limits);
        let count = self.sharing.read_file(&bytes, &key, self.now_ms).unwrap();
        self.naive.runs.clear();
        self.naive.expire(self.now_ms);
        // A file keeps the order of age, not that of use.
        self.naive.known.sort_by_key(|known| known.age);
        assert_eq!(count, self.naive.known.len());
    }
}

fn pick(runs: &[Run], which: usize) -> Option<usize> {
    (!runs.is_empty()).then(|| which % runs.len())
}

fn ids(tokens: &[sharing::AnswerToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn limits(subscribers_max: usize, entries_max: usize, tokens_max: u64) -> SharingLimits {
    let replay = ReplayLimits { entries_max, tokens_max, bytes_max: 1 << 20, ttl_ms: 150 };
    SharingLimits { subscribers_max, replay }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(400)
    })]

    #[test]
    fn sharing_is_what_the_naive_twin_says(
        ops in prop::collection::vec(op(), 1..120),
        subscribers_max in 1usize..4,
        entries_max in 1usize..4,
        tokens_max in 4u64..20,
    ) {
        let mut world = World::new(limits(subscribers_max, entries_max, tokens_max));
        for op in ops {
            world.run(op);
        }
    }
}

/// The random worlds above must reach what they are there to test.
#[test]
fn worlds_have_hits_joins_and_misses() {
    let mut world = World::new(limits(3, 3, 20));
    let arrive = |stop| Op::Arrive { work: 1, tokens_max: 8, stop, mode: 2 };
    let step = Op::Step { which: 0 };
    let ops = [arrive(0), step, arrive(0), step, step, step, step, arrive(0), arrive(1)];
    for op in ops {
        world.run(op);
    }
    assert_eq!(world.outcomes, BTreeMap::from([("hit", 2), ("joined", 1), ("miss", 1)]));
}

#[test]
fn sharing_bounded() {
    let mut limits = limits(2, 100, 1000);
    let one = |work, tokens: u64| {
        let mut sharing = Sharing::new(limits_with_bytes(limits, u64::MAX));
        remember(&mut sharing, work, tokens);
        sharing.counts().replay_bytes
    };
    let bytes = one(0, 10);
    limits = limits_with_bytes(limits, 5 * bytes);
    let mut sharing = Sharing::new(limits);
    for work in 0..50 {
        remember(&mut sharing, work, 10);
        sharing.audit();
    }
    assert_eq!(sharing.counts().replay_entries, 5, "bytes bound it");
    remember(&mut sharing, 60, 1001);
    assert_eq!(sharing.counts().replay_entries, 5, "one that is too large is not remembered");
    limits.replay.tokens_max = 35;
    let mut sharing = Sharing::new(limits);
    (0..50).for_each(|work| remember(&mut sharing, work, 10));
    assert_eq!((sharing.counts().replay_entries, sharing.counts().replay_tokens), (3, 30));
    limits.replay.entries_max = 0;
    let mut sharing = Sharing::new(limits);
    remember(&mut sharing, 1, 10);
    assert_eq!(sharing.counts().replay_entries, 0, "0 turns it off");
}

fn limits_with_bytes(mut limits: SharingLimits, bytes_max: u64) -> SharingLimits {
    limits.replay.bytes_max = bytes_max;
    limits
}

/// Runs one request of `work` to its end.
fn remember(sharing: &mut Sharing, work: u32, tokens: u64) {
    let identity = Identity::of(&Work {
        model: &MODEL,
        namespace: &CacheNamespace::default(),
        prompt: &[work],
        params: &SamplingParams::greedy(),
        stop_tokens: &[],
    });
    let id = SequenceId(u64::from(work));
    let shared = Some((identity, StopRule::default()));
    sharing.begin(id, SubscriberId(id.0), tokens as u32, shared);
    for index in 1..=tokens {
        let finish = (index == tokens).then_some(FinishReason::Length);
        let event = TokenEvent {
            sequence: id,
            token: 1,
            logprob: None,
            finish,
            cached: Default::default(),
            proposals: Default::default(),
        };
        sharing.say(&event, 0, &mut Vec::new());
    }
}
