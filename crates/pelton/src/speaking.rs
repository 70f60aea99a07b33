//! How is an answer asked for and timed on the command line?

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use engine::{Delta, End, Engine, GenerateRequest, Prompt, Service};
use messages::{CacheNamespace, FinishReason, SamplingParams, SharingMode};

/// Flags about how an answer is sampled.
#[derive(Args)]
pub(crate) struct SamplingArguments {
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.6)]
    temperature: f32,
    /// Sample among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.9)]
    top_p: f32,
    /// Sample among this many of the likeliest tokens; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Same seed, same answer [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 1024)]
    max_tokens: u32,
}

impl SamplingArguments {
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            max_tokens: Some(self.max_tokens),
            ..SamplingParams::default()
        }
    }
}

/// An answer with its times.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) first_token: Duration,
    /// From the first to the last token, as the engine computed them.
    pub(crate) decoding: Duration,
    pub(crate) ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Stop,
    Length,
    Interrupted,
}

/// Generates one answer, handing each piece of text to `show`; Ctrl-C ends it.
pub(crate) async fn answer(
    engine: &Engine,
    messages: Vec<chat::Message>,
    params: SamplingParams,
    mut show: impl FnMut(&str),
) -> Result<Answer> {
    let start = Instant::now();
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Chat(messages.into()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let mut generation = engine.generate(request).await?;
    let mut answer = Answer {
        text: String::new(),
        prompt_tokens: generation.prompt_tokens,
        completion_tokens: 0,
        first_token: Duration::ZERO,
        decoding: Duration::ZERO,
        ending: Ending::Interrupted,
    };
    loop {
        let delta = tokio::select! {
            delta = generation.next() => delta,
            _ = tokio::signal::ctrl_c() => return Ok(answer),
        };
        let Some(Delta { text, tokens, end }) = delta else { return Ok(answer) };
        if answer.completion_tokens == 0 {
            answer.first_token = start.elapsed();
        }
        // Tokens may be read late and then all at once: when they are read tells nothing.
        answer.decoding = generation.decoding().unwrap_or_default();
        answer.completion_tokens += tokens.len() as u32;
        show(&text);
        answer.text.push_str(&text);
        match end {
            None => {}
            Some(End::Finished { reason: FinishReason::Length, .. }) => {
                answer.ending = Ending::Length;
            }
            Some(End::Finished { .. }) => answer.ending = Ending::Stop,
            Some(End::Refused(refusal)) => bail!("{refusal}"),
            Some(End::Failed(fault)) => bail!("the answer broke off: {fault}"),
            Some(End::Late(deadline)) => bail!("{}", deadline.text()),
        }
    }
}

impl Answer {
    /// Tokens a second after the first; 0 where one step gave them all.
    pub(crate) fn decode_rate(&self) -> f64 {
        let seconds = self.decoding.as_secs_f64();
        if seconds > 0.0 {
            f64::from(self.completion_tokens.saturating_sub(1)) / seconds
        } else {
            0.0
        }
    }

    pub(crate) fn statistics(&self) -> String {
        let ending = match self.ending {
            Ending::Stop => "",
            Ending::Length => ", cut at the longest answer allowed",
            Ending::Interrupted => ", stopped by you",
        };
        let rate = match self.decode_rate() {
            0.0 => String::new(),
            rate => format!(" at {rate:.1} tok/s"),
        };
        format!(
            "{} prompt tokens, first token after {:.2} s, {} tokens{rate}{ending}",
            self.prompt_tokens,
            self.first_token.as_secs_f64(),
            self.completion_tokens,
        )
    }
}

/// Prints a remark under an answer, dim on a terminal.
pub(crate) fn remark(text: &str) {
    let is_plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some();
    if is_plain {
        eprintln!("{text}");
    } else {
        eprintln!("\x1b[2m{text}\x1b[0m");
    }
}

/// The runtime of a command: one thread is enough to wait on.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
