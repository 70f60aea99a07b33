//! How do token ids become text for one stream? Runs where the stream is read, never on the engine
//! thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use messages::{FinishReason, ProposalCounts, SequenceId, TokenEvent, TokenId};
use tokenizer::{DecodeOptions, IncrementalDecoder, Tokenizer};
use tokio::sync::mpsc;

use crate::intake::Desk;
use crate::step_loop::{Event, Outgoing};
use crate::stop_text::StopText;
use crate::{Delta, DeltaLogprob, DeltaSource, DeltaToken, End, ScoredToken};

/// One stream's reader. Dropping it cancels the sequence.
pub(crate) struct Outlet {
    receiver: mpsc::UnboundedReceiver<Outgoing>,
    tokenizer: Arc<Tokenizer>,
    decoder: IncrementalDecoder,
    stop_text: StopText,
    stop_tokens: Vec<TokenId>,
    include_stop: bool,
    min_tokens: u32,
    completion_tokens: u32,
    proposals: ProposalCounts,
    ended: bool,
    ticket: Ticket,
}

/// A place among the admitted requests; given back when dropped.
pub(crate) struct Ticket {
    pub(crate) id: SequenceId,
    pub(crate) desk: Arc<Desk>,
    /// Whether the scheduler still knows the sequence.
    pub(crate) live: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.live {
            self.desk.send(Event::Cancel(self.id));
        }
        self.desk.leave();
    }
}

/// What the stream asked about its text.
pub(crate) struct TextRules {
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    pub(crate) stop_tokens: Vec<TokenId>,
    pub(crate) min_tokens: u32,
}

impl Outlet {
    pub(crate) fn new(
        receiver: mpsc::UnboundedReceiver<Outgoing>,
        tokenizer: Arc<Tokenizer>,
        rules: TextRules,
        ticket: Ticket,
    ) -> Self {
        let options = DecodeOptions { skip_control: true, at_text_start: false };
        Self {
            receiver,
            decoder: IncrementalDecoder::new(Arc::clone(&tokenizer), options),
            tokenizer,
            stop_text: StopText::new(rules.stop, rules.include_stop),
            stop_tokens: rules.stop_tokens,
            include_stop: rules.include_stop,
            min_tokens: rules.min_tokens,
            completion_tokens: 0,
            proposals: ProposalCounts::default(),
            ended: false,
            ticket,
        }
    }

    fn read(&mut self, outgoing: Option<Outgoing>) -> Option<Delta> {
        match outgoing {
            Some(Outgoing::Token(event)) => Some(self.token(event)),
            Some(Outgoing::Failed(fault)) => Some(self.failed(fault)),
            None => {
                Some(self.failed(messages::Fault("the engine ended before the answer".to_owned())))
            }
        }
    }

    fn failed(&mut self, fault: messages::Fault) -> Delta {
        self.ended = true;
        self.ticket.live = false;
        Delta { text: String::new(), tokens: Vec::new(), end: Some(End::Failed(fault)) }
    }

    fn token(&mut self, event: TokenEvent) -> Delta {
        self.completion_tokens += 1;
        self.proposals += event.proposals;
        let is_stop =
            event.finish == Some(FinishReason::Stop) && self.stop_tokens.contains(&event.token);
        let mut text = String::new();
        let mut stop = None;
        if !is_stop {
            let piece = self.decoder.push(event.token);
            if self.completion_tokens > self.min_tokens {
                let seen = self.stop_text.push(piece);
                (text, stop) = (seen.text, seen.stop);
            } else {
                // Stop texts count only after the tokens that were asked for at least.
                text.push_str(piece);
            }
        }
        let mut reason = event.finish;
        if stop.is_some() {
            reason = Some(FinishReason::Stop);
        } else if reason.is_some() {
            let rest = self.decoder.finish().to_owned();
            let seen = self.stop_text.push(&rest);
            text.push_str(&seen.text);
            stop = seen.stop;
            text.push_str(&self.stop_text.finish());
            if is_stop {
                let name = self.tokenizer.token_text(event.token).unwrap_or_default().to_owned();
                if self.include_stop {
                    text.push_str(&name);
                }
                stop = Some(name);
            }
        }
        let tokens = vec![self.delta_token(&event)];
        let end = reason.map(|reason| {
            self.ended = true;
            // A stop text ends the answer here, not in the scheduler.
            self.ticket.live = event.finish.is_none();
            let completion_tokens = self.completion_tokens;
            let (cached_tokens, proposals) = (event.cached_tokens, self.proposals);
            End::Finished { reason, stop, completion_tokens, cached_tokens, proposals }
        });
        if self.ended && self.ticket.live {
            self.ticket.live = false;
            self.ticket.desk.send(Event::Cancel(self.ticket.id));
        }
        Delta { text, tokens, end }
    }

    fn delta_token(&self, event: &TokenEvent) -> DeltaToken {
        let scored = |id: TokenId, logprob: f32| ScoredToken {
            id,
            bytes: self.tokenizer.token_bytes(id).unwrap_or_default().into(),
            logprob,
        };
        let logprob = event.logprob.as_ref().map(|logprob| DeltaLogprob {
            chosen: scored(event.token, logprob.logprob),
            top: logprob.top.iter().map(|&(id, value)| scored(id, value)).collect(),
        });
        DeltaToken { id: event.token, logprob }
    }
}

impl DeltaSource for Outlet {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Delta>> + Send + '_>> {
        Box::pin(async move {
            if self.ended {
                return None;
            }
            let outgoing = self.receiver.recv().await;
            self.read(outgoing)
        })
    }

    fn next_blocking(&mut self) -> Option<Delta> {
        if self.ended {
            return None;
        }
        let outgoing = self.receiver.blocking_recv();
        self.read(outgoing)
    }
}
