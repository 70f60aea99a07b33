//! How do token ids become text for one stream? Runs where the stream is read, never on the engine
//! thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use messages::{
    CachedEnd, CachedPrompt, FinishReason, ProposalCounts, Refusal, RefusalKind, SubscriberId,
    TokenId,
};
use sharing::{AnswerToken, Leaving, StopRule};
use tokenizer::{DecodeOptions, IncrementalDecoder, Tokenizer};

use crate::intake::Desk;
use crate::outbox::Unread;
use crate::readers::{Known, Outgoing};
use crate::step_loop::Event;
use crate::stop_text::StopText;
use crate::{
    Delta, DeltaLogprob, DeltaSource, DeltaToken, End, QueueReport, ScoredToken, StartFuture,
};

/// One stream's reader. Dropping it ends the sequence if nobody else reads it.
pub(crate) struct Outlet {
    receiver: Unread,
    /// Its wait for a place, once that is over.
    started: Option<QueueReport>,
    /// What came instead of a start.
    early: Option<Outgoing>,
    /// Tokens that came together, and how many of them are read.
    known: Option<(Known, usize)>,
    tokenizer: Arc<Tokenizer>,
    decoder: IncrementalDecoder,
    stop_text: StopText,
    stop_tokens: Vec<TokenId>,
    shown: Arc<[TokenId]>,
    include_stop: bool,
    min_tokens: u32,
    completion_tokens: u32,
    /// Whether the prompt came with another request's answer.
    is_shared: bool,
    /// Of the prompt: not computed for this stream.
    cached: CachedPrompt,
    proposals: ProposalCounts,
    vector: Option<Box<[f32]>>,
    /// When the first token that was read came from its step, and the last.
    computed: Option<(Instant, Instant)>,
    ended: bool,
    ticket: Ticket,
}

/// A place among the admitted requests; given back when dropped.
pub(crate) struct Ticket {
    pub(crate) id: SubscriberId,
    pub(crate) desk: Arc<Desk>,
    /// Whether the step loop may still know it.
    pub(crate) live: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.live {
            self.desk.send(Event::Leave(self.id, Leaving::Gone));
        }
        self.desk.leave();
    }
}

/// What the stream asked about its text.
pub(crate) struct TextRules {
    pub(crate) stop: StopRule,
    pub(crate) include_stop: bool,
    pub(crate) stop_tokens: Vec<TokenId>,
    /// Control tokens that are not left out.
    pub(crate) shown: Arc<[TokenId]>,
}

impl Outlet {
    pub(crate) fn new(
        receiver: Unread,
        tokenizer: Arc<Tokenizer>,
        rules: TextRules,
        shared_tokens: Option<u32>,
        ticket: Ticket,
    ) -> Self {
        let options = DecodeOptions { skip_control: true, at_text_start: false };
        Self {
            receiver,
            started: None,
            early: None,
            known: None,
            decoder: IncrementalDecoder::new(Arc::clone(&tokenizer), options),
            tokenizer,
            stop_text: StopText::new(rules.stop.texts, rules.include_stop),
            stop_tokens: rules.stop_tokens,
            shown: rules.shown,
            include_stop: rules.include_stop,
            min_tokens: rules.stop.min_tokens,
            completion_tokens: 0,
            is_shared: shared_tokens.is_some(),
            cached: shared_tokens.map_or_else(CachedPrompt::default, |tokens| CachedPrompt {
                tokens,
                end: CachedEnd::Shared,
            }),
            proposals: ProposalCounts::default(),
            vector: None,
            computed: None,
            ended: false,
            ticket,
        }
    }

    /// What a message says to the reader of deltas; `None`: nothing.
    fn read(&mut self, outgoing: Option<Outgoing>) -> Option<Delta> {
        let delta = match outgoing {
            Some(Outgoing::Started(report)) => {
                self.started = Some(report);
                return None;
            }
            Some(Outgoing::Refused(refusal)) => self.broken(End::Refused(refusal)),
            Some(Outgoing::Token { token, at, finish, cached, proposals }) => {
                self.computed = Some((self.computed.map_or(at, |(first, _)| first), at));
                self.proposals += proposals;
                if !self.is_shared {
                    self.cached = cached;
                }
                self.token(&token, finish)
            }
            Some(Outgoing::Vector(vector)) => {
                self.vector = Some(vector);
                return None;
            }
            Some(Outgoing::Known(known)) => self.next_known(known, 0),
            Some(Outgoing::Failed(fault)) => self.broken(End::Failed(fault)),
            Some(Outgoing::Late(deadline)) => self.broken(End::Late(deadline)),
            None => {
                let fault = messages::Fault("the engine ended before the answer".to_owned());
                self.broken(End::Failed(fault))
            }
        };
        Some(delta)
    }

    /// What is there without waiting.
    fn next_there(&mut self) -> Option<Delta> {
        if let Some((known, index)) = self.known.take() {
            return Some(self.next_known(known, index));
        }
        let early = self.early.take()?;
        self.read(Some(early))
    }

    async fn wait_for_start(&mut self) -> Result<QueueReport, Refusal> {
        while self.started.is_none() && self.early.is_none() && !self.ended {
            match self.receiver.recv().await {
                Some(Outgoing::Started(report)) => self.started = Some(report),
                Some(Outgoing::Refused(refusal)) => {
                    self.ended = true;
                    self.ticket.live = false;
                    return Err(refusal);
                }
                Some(Outgoing::Late(deadline)) => {
                    self.ended = true;
                    self.ticket.live = false;
                    return Err(Refusal::new(RefusalKind::Late, deadline.text()));
                }
                Some(Outgoing::Vector(vector)) => self.vector = Some(vector),
                Some(early) => self.early = Some(early),
                None => {
                    let text = "the engine is stopping";
                    return Err(Refusal::new(RefusalKind::Unavailable, text));
                }
            }
        }
        Ok(self.started.unwrap_or_default())
    }

    /// The `index`th of the tokens that came together, as if it came alone.
    fn next_known(&mut self, known: Known, index: usize) -> Delta {
        let is_last = index + 1 == known.count;
        let finish = known.finish.filter(|_| is_last);
        let delta = self.token(&known.tokens[index], finish);
        self.known = (!is_last).then_some((known, index + 1));
        delta
    }

    fn broken(&mut self, end: End) -> Delta {
        self.ended = true;
        self.ticket.live = false;
        Delta { text: String::new(), tokens: Vec::new(), end: Some(end) }
    }

    fn token(&mut self, token: &AnswerToken, finish: Option<FinishReason>) -> Delta {
        self.completion_tokens += 1;
        let is_stop = finish == Some(FinishReason::Stop) && self.stop_tokens.contains(&token.id);
        let mut text = String::new();
        let mut stop = None;
        if !is_stop {
            let piece = if self.shown.contains(&token.id) {
                self.decoder.push_shown(token.id)
            } else {
                self.decoder.push(token.id)
            };
            if self.completion_tokens > self.min_tokens {
                let seen = self.stop_text.push(piece);
                (text, stop) = (seen.text, seen.stop);
            } else {
                // Stop texts count only after the tokens that were asked for at least.
                text.push_str(piece);
            }
        }
        let mut reason = finish;
        if stop.is_some() {
            reason = Some(FinishReason::Stop);
        } else if reason.is_some() {
            let rest = self.decoder.finish().to_owned();
            let seen = self.stop_text.push(&rest);
            text.push_str(&seen.text);
            stop = seen.stop;
            text.push_str(&self.stop_text.finish());
            if is_stop {
                let name = self.tokenizer.token_text(token.id).unwrap_or_default().to_owned();
                if self.include_stop {
                    text.push_str(&name);
                }
                stop = Some(name);
            }
        }
        let tokens = vec![self.delta_token(token)];
        let end = reason.map(|reason| {
            self.ended = true;
            // A stop text ends the answer here, not in the step loop.
            self.ticket.live = finish.is_none();
            let completion_tokens = self.completion_tokens;
            let (cached, proposals) = (self.cached, self.proposals);
            End::Finished { reason, stop, completion_tokens, cached, proposals }
        });
        if self.ended && self.ticket.live {
            self.ticket.live = false;
            let leaving = Leaving::StopText { tokens: self.completion_tokens as usize };
            self.ticket.desk.send(Event::Leave(self.ticket.id, leaving));
        }
        Delta { text, tokens, end }
    }

    fn delta_token(&self, token: &AnswerToken) -> DeltaToken {
        let scored = |id: TokenId, logprob: f32| ScoredToken {
            id,
            bytes: self.tokenizer.token_bytes(id).unwrap_or_default().into(),
            logprob,
        };
        let logprob = token.logprob.as_ref().map(|logprob| DeltaLogprob {
            chosen: scored(token.id, logprob.logprob),
            top: logprob.top.iter().map(|&(id, value)| scored(id, value)).collect(),
        });
        DeltaToken { id: token.id, logprob }
    }
}

impl DeltaSource for Outlet {
    fn started(&mut self) -> StartFuture<'_> {
        Box::pin(self.wait_for_start())
    }

    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Delta>> + Send + '_>> {
        Box::pin(async move {
            if self.ended {
                return None;
            }
            if let Some(delta) = self.next_there() {
                return Some(delta);
            }
            loop {
                let outgoing = self.receiver.recv().await;
                if let Some(delta) = self.read(outgoing) {
                    return Some(delta);
                }
            }
        })
    }

    fn take_vector(&mut self) -> Option<Box<[f32]>> {
        self.vector.take()
    }

    fn decoding(&self) -> Option<Duration> {
        self.computed.map(|(first, last)| last.saturating_duration_since(first))
    }

    fn next_blocking(&mut self) -> Option<Delta> {
        if self.ended {
            return None;
        }
        if let Some(delta) = self.next_there() {
            return Some(delta);
        }
        loop {
            let outgoing = self.receiver.blocking_recv();
            if let Some(delta) = self.read(outgoing) {
                return Some(delta);
            }
        }
    }
}
