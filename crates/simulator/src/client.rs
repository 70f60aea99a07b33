//! What does a client ask, and what must it be answered?

use std::sync::Arc;

use messages::{
    CacheNamespace, FinishReason, Limits, ProposalCounts, SequenceId, TokenEvent, TokenId,
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
    pub(crate) proposals: ProposalCounts,
    pub(crate) finished: bool,
    pub(crate) cancelled: bool,
}

impl Client {
    pub(crate) fn new(request: SequenceRequest, limits: &Limits) -> Self {
        let (expected, expected_finish) = answer_alone(&request, limits);
        Self {
            request,
            expected,
            expected_finish,
            told: 0,
            proposals: ProposalCounts::default(),
            finished: false,
            cancelled: false,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.finished && !self.cancelled
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

    pub(crate) fn take(&mut self, event: &TokenEvent) {
        let id = self.request.id;
        assert!(!self.cancelled, "{id:?} is told a token after it went away");
        assert!(!self.finished, "{id:?} is told a token after its last one");
        let place = self.told;
        assert_eq!(event.token, self.expected[place], "{id:?}: token {place} differs from alone");
        self.told += 1;
        self.proposals += event.proposals;
        let is_last = self.told == self.expected.len();
        let finish = is_last.then_some(self.expected_finish);
        assert_eq!(event.finish, finish, "{id:?}: finish at token {place}");
        self.finished = is_last;
    }
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
        let namespaces = vec![salted(""), salted(""), salted("x"), None];
        Self {
            beginnings,
            namespaces,
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
        SequenceRequest {
            id,
            prompt: self.prompt(random, prompt_count),
            max_tokens,
            min_tokens: random.between(0, 6).min(max_tokens.unwrap_or(6)),
            stop_tokens: (0..stop_count).map(|_| random.between(0, VOCABULARY - 1)).collect(),
            cache_namespace: self.namespaces[namespace as usize].clone(),
            restorable: 0..0,
        }
    }
}
