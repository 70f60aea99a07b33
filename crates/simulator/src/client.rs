//! What does a client ask, and what must it be answered?

use std::collections::VecDeque;
use std::sync::Arc;

use messages::{
    CacheNamespace, FinishReason, Limits, Priority, ProposalCounts, SequenceId, TokenEvent, TokenId,
};
use scheduler::SequenceRequest;

use crate::fake_device::{VOCABULARY, token_of};
use crate::random::{Random, mix};

/// One accepted request and what it has been told so far.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) request: SequenceRequest,
    expected: Vec<TokenId>,
    expected_finish: FinishReason,
    told: usize,
    /// Told and not read yet.
    mail: VecDeque<TokenEvent>,
    read: usize,
    /// Percent of turns in which it reads what is there.
    reads: u32,
    pub(crate) proposals: ProposalCounts,
    pub(crate) state: State,
    /// The turn at which it is given up if it has not ended.
    pub(crate) deadline: Option<u64>,
    /// Steps planned before it came.
    pub(crate) since: u64,
    pub(crate) was_admitted: bool,
    /// Tenants that had one admitted since it is overdue and its own tenant had none.
    pub(crate) turns: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Finished,
    /// It went away.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// A step of its failed.
    Failed,
}

impl Client {
    pub(crate) fn new(request: SequenceRequest, limits: &Limits, manners: Manners) -> Self {
        let (expected, expected_finish) = answer_alone(&request, limits);
        Self {
            request,
            expected,
            expected_finish,
            told: 0,
            mail: VecDeque::new(),
            read: 0,
            reads: manners.reads,
            proposals: ProposalCounts::default(),
            state: State::Open,
            deadline: manners.deadline,
            since: manners.since,
            was_admitted: false,
            turns: Vec::new(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(crate) fn told(&self) -> &[TokenId] {
        &self.expected[..self.told]
    }

    /// Guesses at what the answer says next; each is wrong by a chance of `wrong` percent.
    pub(crate) fn guesses(&self, random: &mut Random, wrong: u32) -> Vec<TokenId> {
        let count = random.between(0, 9) as usize;
        let next = self.expected[self.told..].iter().copied().chain(std::iter::repeat(0));
        next.take(count)
            .map(|token| if random.chance(wrong) { (token + 1) % VOCABULARY } else { token })
            .collect()
    }

    /// It is told a token, and reads it when it likes: nothing waits for it.
    pub(crate) fn tell(&mut self, event: &TokenEvent) {
        let id = self.request.id;
        assert_eq!(self.state, State::Open, "{id:?} is told a token after its end");
        self.told += 1;
        self.proposals += event.proposals;
        self.mail.push_back(event.clone());
        assert!(self.mail.len() <= self.expected.len(), "queues_bounded: the mail of {id:?}");
        if event.finish.is_some() {
            self.state = State::Finished;
        }
    }

    /// Reads some of its mail, by chance.
    pub(crate) fn read(&mut self, random: &mut Random) {
        if !self.mail.is_empty() && random.chance(self.reads) {
            self.read_all();
        }
    }

    /// Compares what it was told with what it would be told alone.
    pub(crate) fn read_all(&mut self) {
        while let Some(event) = self.mail.pop_front() {
            let (id, place) = (self.request.id, self.read);
            let expected = self.expected[place];
            assert_eq!(event.token, expected, "{id:?}: token {place} differs from alone");
            self.read += 1;
            let is_last = self.read == self.expected.len();
            let finish = is_last.then_some(self.expected_finish);
            assert_eq!(event.finish, finish, "{id:?}: finish at token {place}");
        }
    }
}

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    pub(crate) reads: u32,
    pub(crate) deadline: Option<u64>,
    pub(crate) since: u64,
}

/// The twin without a scheduler: the answer of the request in a world of its own.
pub(crate) fn answer_alone(
    request: &SequenceRequest,
    limits: &Limits,
) -> (Vec<TokenId>, FinishReason) {
    let room = u64::from(limits.context_tokens_max).min(limits.pool_tokens()) as usize;
    let fold = |hash, &token: &TokenId| mix(hash, u64::from(token));
    let mut hash = request.prompt.iter().fold(0, fold);
    let mut answer = Vec::new();
    loop {
        let index = answer.len() as u32;
        let token = token_of(hash, index, request.min_tokens, &request.stop_tokens);
        answer.push(token);
        hash = fold(hash, &token);
        if index >= request.min_tokens && request.stop_tokens.contains(&token) {
            return (answer, FinishReason::Stop);
        }
        let is_full = request.prompt.len() + answer.len() == room;
        if is_full || request.max_tokens == Some(answer.len() as u32) {
            return (answer, FinishReason::Length);
        }
    }
}

/// What prompts are made of: beginnings that many share, in namespaces that keep some apart.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    beginnings: Vec<Vec<TokenId>>,
    namespaces: Vec<Option<Arc<CacheNamespace>>>,
    tenants: Vec<Arc<str>>,
    /// How often a prompt starts with one of them, in percent.
    shared: u32,
    /// Most prompts have at most the context by this many tokens.
    divisor: u32,
}

impl Texts {
    pub(crate) fn new(random: &mut Random, limits: &Limits) -> Self {
        let long = limits.context_tokens_max;
        let count = random.between(1, 4);
        let beginnings = (0..count)
            .map(|_| {
                let length = random.between(1, long);
                (0..length).map(|_| random.between(0, VOCABULARY - 1)).collect()
            })
            .collect();
        let salted = |salt: &str| {
            Some(Arc::new(CacheNamespace { salt: salt.to_owned(), ..CacheNamespace::default() }))
        };
        let tenants = random.between(1, 4);
        let namespaces = vec![salted(""), salted(""), salted("x"), None];
        Self {
            beginnings,
            namespaces,
            tenants: (0..tenants).map(|number| Arc::from(number.to_string())).collect(),
            shared: random.between(0, 100),
            divisor: random.between(1, 4),
        }
    }

    fn prompt(&self, random: &mut Random, count: u32) -> Vec<TokenId> {
        let mut prompt = Vec::new();
        if random.chance(self.shared) {
            let last = self.beginnings.len() as u32 - 1;
            let beginning = &self.beginnings[random.between(0, last) as usize];
            let shared = if random.chance(30) { random.between(0, count) } else { count };
            let shared = shared.min(beginning.len() as u32);
            prompt.extend_from_slice(&beginning[..shared as usize]);
        }
        while prompt.len() < count as usize {
            prompt.push(random.between(0, VOCABULARY - 1));
        }
        prompt
    }

    /// A request by chance; some cannot be served.
    pub(crate) fn request(
        &self,
        random: &mut Random,
        id: SequenceId,
        limits: &Limits,
    ) -> SequenceRequest {
        let context = limits.context_tokens_max;
        let prompt_max = match random.between(1, 20) {
            1 => context + 3,
            2..=5 => context,
            _ => (context / self.divisor).max(1),
        };
        let is_empty = random.chance(2);
        let prompt_count = if is_empty { 0 } else { random.between(1, prompt_max) };
        let max_tokens = random.chance(75).then(|| random.between(1, context));
        let stop_count = if random.chance(50) { random.between(1, 4) } else { 0 };
        let namespace = random.between(0, self.namespaces.len() as u32 - 1);
        let tenant = random.between(0, self.tenants.len() as u32 - 1);
        SequenceRequest {
            id,
            prompt: self.prompt(random, prompt_count),
            max_tokens,
            min_tokens: random.between(0, 6).min(max_tokens.unwrap_or(6)),
            stop_tokens: (0..stop_count).map(|_| random.between(0, VOCABULARY - 1)).collect(),
            cache_namespace: self.namespaces[namespace as usize].clone(),
            restorable: 0..0,
            priority: Priority::ALL[random.between(0, 2) as usize],
            tenant: Arc::clone(&self.tenants[tenant as usize]),
        }
    }
}
