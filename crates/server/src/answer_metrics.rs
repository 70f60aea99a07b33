//! How long did answers take, how many tokens did they have, and how did they end? A set of
//! histograms for each model, in vLLM's names; those of all models together in ours.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::histogram::Histogram;
use crate::metrics::{Page, label_value};
use crate::visit::AnswerEnd;

/// From a small model's step to a long prompt on a slow machine; each step about 2.
const WAIT_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0, 250.0,
];
/// 1 ms is 1,000 tokens a second for one reader, 2.5 s a stall that any reader notices.
const NEXT_TOKEN_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5];
const ANSWER_BOUNDS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
/// To a context of a million.
const TOKEN_BOUNDS: &[f64] = &[
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0,
    131072.0, 1048576.0,
];

const CHOICE_BOUNDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// What is measured of answers; the index of its histogram.
#[derive(Clone, Copy)]
pub(crate) enum Measure {
    FirstToken,
    NextToken,
    Answer,
    Queue,
    TokenOfAnswer,
    Inference,
    Prefill,
    Decode,
    PromptTokens,
    GenerationTokens,
    ComputedTokens,
    MaxTokens,
    Choices,
}

struct Series {
    /// Behind `pelton_`; `None`: under vLLM's name only.
    ours: Option<&'static str>,
    /// Behind `vllm:`; there may be an older one that dashboards still ask for.
    theirs: &'static [&'static str],
    help: &'static str,
    bounds: &'static [f64],
}

/// In the order of [`Measure`].
const SERIES: [Series; 13] = [
    Series {
        ours: Some("time_to_first_token_seconds"),
        theirs: &["time_to_first_token_seconds"],
        help: "From the request's arrival to its first token.",
        bounds: WAIT_BOUNDS,
    },
    Series {
        ours: Some("inter_token_latency_seconds"),
        theirs: &["inter_token_latency_seconds", "time_per_output_token_seconds"],
        help: "Between one token of an answer and the next.",
        bounds: NEXT_TOKEN_BOUNDS,
    },
    Series {
        ours: Some("e2e_request_latency_seconds"),
        theirs: &["e2e_request_latency_seconds"],
        help: "From the request's arrival to its last token.",
        bounds: ANSWER_BOUNDS,
    },
    Series {
        ours: Some("request_queue_seconds"),
        theirs: &["request_queue_time_seconds"],
        help: "From the request's arrival until its answer is being computed.",
        bounds: WAIT_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_time_per_output_token_seconds"],
        help: "Of a finished answer, the mean between its tokens.",
        bounds: NEXT_TOKEN_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_inference_time_seconds"],
        help: "From the start of its computation to the last token.",
        bounds: ANSWER_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_prefill_time_seconds"],
        help: "From the start of its computation to the first token.",
        bounds: WAIT_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_decode_time_seconds"],
        help: "From the first token to the last.",
        bounds: ANSWER_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_prompt_tokens"],
        help: "Tokens of prompts of finished answers.",
        bounds: TOKEN_BOUNDS,
    },
    Series {
        ours: None,
        // Several answers of a request are several requests here: the most of them is each.
        theirs: &["request_generation_tokens", "request_max_num_generation_tokens"],
        help: "Tokens of finished answers.",
        bounds: TOKEN_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_prefill_kv_computed_tokens"],
        help: "Tokens of prompts of finished answers that were not found in the cache.",
        bounds: TOKEN_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_params_max_tokens"],
        help: "The most tokens that requests asked for.",
        bounds: TOKEN_BOUNDS,
    },
    Series {
        ours: None,
        theirs: &["request_params_n"],
        help: "The answers to a prompt that requests asked for.",
        bounds: CHOICE_BOUNDS,
    },
];

/// vLLM's words for how an answer ended.
const ENDS: [&str; 4] = ["stop", "length", "abort", "error"];

/// Of one model.
pub(crate) struct ModelAnswers {
    histograms: [Histogram; SERIES.len()],
    ends: [AtomicU64; ENDS.len()],
}

impl ModelAnswers {
    fn new() -> Self {
        Self {
            histograms: std::array::from_fn(|index| Histogram::new(SERIES[index].bounds)),
            ends: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn took(&self, measure: Measure, duration: Duration, times: u32) {
        self.histograms[measure as usize].observe(duration.as_secs_f64(), times);
    }

    pub(crate) fn counted(&self, measure: Measure, count: u32) {
        self.histograms[measure as usize].observe(count.into(), 1);
    }

    pub(crate) fn ended(&self, end: AnswerEnd) {
        let index = match end {
            AnswerEnd::Stop => 0,
            AnswerEnd::Length => 1,
            AnswerEnd::Gone | AnswerEnd::Cancelled | AnswerEnd::Late | AnswerEnd::Refused => 2,
            AnswerEnd::Failed => 3,
        };
        self.ends[index].fetch_add(1, Ordering::Relaxed);
    }
}

/// Of all models; a model that is unloaded keeps what it counted.
#[derive(Default)]
pub(crate) struct AnswerMetrics {
    models: Mutex<BTreeMap<String, Arc<ModelAnswers>>>,
}

impl AnswerMetrics {
    /// `model` is one that is served, never a name that a caller made up.
    pub(crate) fn of_model(&self, model: &str) -> Arc<ModelAnswers> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = models.get(model) {
            return Arc::clone(answers);
        }
        let answers = Arc::new(ModelAnswers::new());
        models.insert(model.to_owned(), Arc::clone(&answers));
        answers
    }

    /// `served` have lines although nobody asked them yet.
    pub(crate) fn render(&self, page: &mut Page, served: &[&str], may_see: impl Fn(&str) -> bool) {
        for model in served {
            self.of_model(model);
        }
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner).clone();
        models.retain(|model, _| may_see(model));
        for (index, series) in SERIES.iter().enumerate() {
            if let Some(name) = series.ours {
                let all = Histogram::new(series.bounds);
                models.values().for_each(|model| all.merge(&model.histograms[index]));
                let name = format!("pelton_{name}");
                page.head(&name, "histogram", series.help);
                page.histogram(&name, &all, "");
                let name = name.replacen("pelton_", "pelton_model_", 1);
                page.head(&name, "summary", series.help);
                for (model, answers) in &models {
                    page.summary(&name, &answers.histograms[index], &label_value(model));
                }
            }
            for name in series.theirs {
                let name = format!("vllm:{name}");
                page.head(&name, "histogram", series.help);
                for (model, answers) in &models {
                    let labels = format!("model_name=\"{}\"", label_value(model));
                    page.histogram(&name, &answers.histograms[index], &labels);
                }
            }
        }
        let name = "vllm:request_success_total";
        page.head(name, "counter", "Answers that ended, and how.");
        for (model, answers) in &models {
            for (end, count) in ENDS.iter().zip(&answers.ends) {
                let model = label_value(model);
                let labels = format!("model_name=\"{model}\",finished_reason=\"{end}\"");
                page.line(name, &labels, count.load(Ordering::Relaxed) as f64);
            }
        }
    }
}
