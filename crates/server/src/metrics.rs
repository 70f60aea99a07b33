//! What has the server done so far, in Prometheus' text form?
//!
//! Written by hand: fixed series need no registry. No label holds a user's text, so the number of
//! series depends on nobody but us. Names that vLLM's dashboards know are given too, with a line
//! for each model.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use engine::{BreakerState, EngineStatus, ModelStatus, STEP_TOKEN_BOUNDS, page_faults};

use crate::answer_metrics::AnswerMetrics;
use crate::app::Outside;
use crate::audit::AuditLog;
use crate::histogram::Histogram;
use crate::resource_metrics;
use crate::routes::models::state_name;

/// The server's own counts; the engine's come with [`EngineStatus`].
#[derive(Default)]
pub(crate) struct Metrics {
    responses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    failed_answers: AtomicU64,
    pub(crate) answers: AnswerMetrics,
}

impl Metrics {
    /// `route` is a line of the route table, never a path that was asked for.
    pub(crate) fn count_response(&self, route: &'static str, status: u16) {
        // A panic between lock and unlock cannot leave a count half-made.
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry((route, status)).or_insert(0) += 1;
    }

    pub(crate) fn count_failed_answer(&self) {
        self.failed_answers.fetch_add(1, Ordering::Relaxed);
    }

    /// `may_see` says of which models the caller may know.
    pub(crate) fn render(
        &self,
        status: &EngineStatus,
        models: &[ModelStatus],
        outside: &Outside,
        may_see: impl Fn(&str) -> bool,
    ) -> String {
        let mut page = Page { text: String::new() };
        page.engine(status);
        page.caches(status);
        resource_metrics::render(&mut page, &status.resources);
        page.loading(status);
        page.models(models);
        page.steps(models);
        page.head("pelton_http_responses_total", "counter", "Responses by route and status.");
        let responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((route, status), count) in responses {
            let labels = format!("route=\"{route}\",status=\"{status}\"");
            page.line("pelton_http_responses_total", &labels, count as f64);
        }
        let failed = self.failed_answers.load(Ordering::Relaxed) as f64;
        page.single(
            "pelton_answers_failed_total",
            "counter",
            "Answers that failed midway.",
            failed,
        );
        page.outside(outside);
        let served: Vec<&str> = models.iter().map(|model| model.card.id.as_str()).collect();
        self.answers.render(&mut page, &served, may_see);
        page.text
    }
}

type Series = (&'static str, &'static str, &'static str, fn(&ModelStatus) -> f64);

/// Series with one line a model: name, kind, help, value.
const OF_MODELS: &[Series] = &[
    ("memory_estimate_bytes", "gauge", "Worked out before it is loaded.", |model| {
        model.memory_estimate.resident_bytes() as f64
    }),
    ("memory_used_bytes", "gauge", "0 unless it is in memory.", |model| {
        model.memory_used.map_or(0.0, |used| used.resident_bytes() as f64)
    }),
    ("kv_tier_ram_bytes", "gauge", "Keys and values that it keeps in memory.", |model| {
        model.engine.kv_tiers.ram_bytes as f64
    }),
    ("kv_tier_disk_bytes", "gauge", "Keys and values that it keeps on disk.", |model| {
        model.engine.kv_tiers.disk_bytes as f64
    }),
    ("running_limit", "gauge", "Answers that may be computed at once now.", |model| {
        model.engine.queue.running_limit.into()
    }),
    ("queue_length", "gauge", "Requests that wait for a place.", |model| {
        model.engine.queue.length.into()
    }),
    ("queue_newcomer_seconds", "gauge", "What one would wait that came now.", |model| {
        model.engine.queue.newcomer_wait.unwrap_or_default().as_secs_f64()
    }),
    ("queue_started_total", "counter", "Requests whose wait is over.", |model| {
        model.engine.queue.started_total as f64
    }),
    ("queue_seconds_total", "counter", "What those waited, together.", |model| {
        model.engine.queue.waited_seconds_total
    }),
    ("queue_full_total", "counter", "Requests refused because too many waited.", |model| {
        model.engine.queue.refused_full_total as f64
    }),
    ("queue_late_total", "counter", "Requests refused for too long a wait.", |model| {
        model.engine.queue.refused_late_total as f64
    }),
    ("requests", "gauge", "Requests that keep it in memory.", |model| model.leases.into()),
    ("requests_waiting_for_load", "gauge", "Requests that wait until it is loaded.", |model| {
        model.waiting.into()
    }),
    ("loads_total", "counter", "Times it was loaded.", |model| model.loads_total as f64),
    ("load_failures_total", "counter", "Times it could not be.", |model| {
        model.load_failures_total as f64
    }),
    ("load_seconds", "gauge", "What the latest load took.", |model| model.load_time.as_secs_f64()),
    ("breaker_open", "gauge", "1 while its device is given no work or one trial.", |model| {
        if model.engine.breaker == BreakerState::Closed { 0.0 } else { 1.0 }
    }),
    ("breaker_opened_total", "counter", "Times its device was given up for a while.", |model| {
        model.engine.breaker_opened_total as f64
    }),
    ("vllm:num_requests_running", "gauge", VLLM, |model| model.engine.sequences_running.into()),
    ("vllm:num_requests_waiting", "gauge", VLLM, |model| model.engine.sequences_waiting.into()),
    ("vllm:kv_cache_usage_perc", "gauge", VLLM, kv_share),
    // Until 0.11, and in what was made for it.
    ("vllm:gpu_cache_usage_perc", "gauge", VLLM, kv_share),
    ("vllm:prompt_tokens_total", "counter", VLLM, |model| model.engine.prompt_tokens_total as f64),
    ("vllm:generation_tokens_total", "counter", VLLM, |model| {
        model.engine.generation_tokens_total as f64
    }),
    ("vllm:prefix_cache_queries_total", "counter", VLLM, |model| {
        model.engine.prefix_cache.queried_tokens_total as f64
    }),
    ("vllm:prefix_cache_hits_total", "counter", VLLM, |model| {
        model.engine.prefix_cache.hit_tokens_total as f64
    }),
    ("vllm:prompt_tokens_cached_total", "counter", VLLM, |model| {
        model.engine.prefix_cache.hit_tokens_total as f64
    }),
    ("vllm:spec_decode_num_drafts_total", "counter", VLLM, |model| {
        model.engine.speculation.checks_total as f64
    }),
    ("vllm:spec_decode_num_accepted_tokens_total", "counter", VLLM, |model| {
        model.engine.speculation.accepted_tokens_total as f64
    }),
    ("vllm:spec_decode_num_draft_tokens_total", "counter", VLLM, |model| {
        let counts = &model.engine.speculation;
        (counts.accepted_tokens_total + counts.rejected_tokens_total) as f64
    }),
    ("vllm:num_preemptions_total", "counter", VLLM, |model| model.engine.preemptions_total as f64),
];
const VLLM: &str = "As vLLM names it.";

fn kv_share(model: &ModelStatus) -> f64 {
    let engine = &model.engine;
    f64::from(engine.kv_blocks_used) / f64::from(engine.kv_blocks_total.max(1))
}

/// The text while it is written.
pub(crate) struct Page {
    text: String,
}

impl Page {
    fn engine(&mut self, status: &EngineStatus) {
        let speculation = &status.speculation;
        let accepted = speculation.accepted_tokens_total as f64;
        let rejected = speculation.rejected_tokens_total as f64;
        let switched_off = speculation.switched_off_total as f64;
        let ready = f64::from(u8::from(status.ready));
        let sharing = &status.sharing;
        let healthy = f64::from(u8::from(status.trouble.is_none()));
        for (name, help, value) in [
            ("ready", "1 when requests are answered.", ready),
            ("healthy", "1 when the engine works.", healthy),
            ("sequences_running", "Answers being generated.", status.sequences_running.into()),
            ("sequences_waiting", "Answers waiting to start.", status.sequences_waiting.into()),
            ("kv_blocks_used", "KV blocks in use.", status.kv_blocks_used.into()),
            ("kv_blocks_total", "KV blocks there are.", status.kv_blocks_total.into()),
            ("sharing_replay_entries", "Remembered answers.", sharing.replay_entries as f64),
            ("sharing_replay_tokens", "Tokens of them.", sharing.replay_tokens as f64),
            ("sharing_replay_bytes", "Bytes of them.", sharing.replay_bytes as f64),
        ] {
            self.single(&format!("pelton_{name}"), "gauge", help, value);
        }
        for (name, help, value) in [
            ("requests", "Requests that reached the engine.", status.requests_total as f64),
            ("requests_refused", "Of those, refused.", status.requests_refused_total as f64),
            ("requests_cancelled", "Cancelled.", status.requests_cancelled_total as f64),
            ("prompt_tokens", "Prompt tokens asked for.", status.prompt_tokens_total as f64),
            ("generation_tokens", "Tokens generated.", status.generation_tokens_total as f64),
            ("computed_tokens", "Positions computed.", status.computed_tokens_total as f64),
            ("steps", "Device steps.", status.steps_total as f64),
            ("step_seconds", "Time in device steps.", status.step_seconds_total),
            ("preemptions", "Answers pushed out of memory.", status.preemptions_total as f64),
            ("returned_blocks", "KV blocks they took back.", status.returned_blocks_total as f64),
            ("speculation_checks", "Rows that checked guesses.", speculation.checks_total as f64),
            ("speculation_accepted_tokens", "Right guesses.", accepted),
            ("speculation_rejected_tokens", "Wrong guesses.", rejected),
            ("speculation_switched_off", "Answers whose guesses did not pay.", switched_off),
            ("requests_late", "Answers past their deadlines.", status.requests_late_total as f64),
            ("sharing_hits", "Answers that were remembered.", sharing.hits_total as f64),
            ("sharing_joins", "Requests that read along with another.", sharing.joins_total as f64),
            ("sharing_misses", "Shareable, nothing found.", sharing.misses_total as f64),
            ("sharing_unshared", "Requests that may not share.", sharing.unshared_total as f64),
            ("sharing_tokens", "Tokens not computed anew.", sharing.tokens_shared_total as f64),
        ] {
            self.single(&format!("pelton_{name}_total"), "counter", help, value);
        }
    }

    /// One line a model in each series.
    fn models(&mut self, models: &[ModelStatus]) {
        self.head("pelton_model_state", "gauge", "1 for the state that a model is in.");
        for model in models {
            let name = label_value(&model.card.id);
            let labels = format!("model=\"{name}\",state=\"{}\"", state_name(&model.state));
            self.line("pelton_model_state", &labels, 1.0);
        }
        for (name, kind, help, value) in OF_MODELS {
            let (name, label) = match name.strip_prefix("vllm:") {
                Some(_) => ((*name).to_owned(), "model_name"),
                None => (format!("pelton_model_{name}"), "model"),
            };
            self.head(&name, kind, help);
            for model in models {
                let labels = format!("{label}=\"{}\"", label_value(&model.card.id));
                self.line(&name, &labels, value(model));
            }
        }
    }

    /// Of each model: how many tokens its steps computed, and what its cache is.
    fn steps(&mut self, models: &[ModelStatus]) {
        let label = |model: &ModelStatus| format!("model_name=\"{}\"", label_value(&model.card.id));
        // vLLM's name for a histogram.
        let name = "vllm:iteration_tokens_total";
        self.head(name, "histogram", "Tokens that a step computed.");
        for model in models {
            let (engine, sizes) = (&model.engine, &model.engine.step_sizes);
            let sum = engine.computed_tokens_total as f64;
            let sizes = Histogram::of(&STEP_TOKEN_BOUNDS, &sizes.counts, sum);
            self.histogram(name, &sizes, &label(model));
        }
        let name = "vllm:cache_config_info";
        self.head(name, "gauge", "Blocks of keys and values, and the tokens of each.");
        for model in models.iter().filter(|model| model.engine.kv_blocks_total > 0) {
            let (blocks, tokens) = (model.engine.kv_blocks_total, model.engine.kv_block_tokens);
            let labels =
                format!("{},block_size=\"{tokens}\",num_gpu_blocks=\"{blocks}\"", label(model));
            self.line(name, &labels, 1.0);
        }
    }

    /// What was found instead of computed, and where it is kept.
    fn caches(&mut self, status: &EngineStatus) {
        let (prefixes, tiers) = (&status.prefix_cache, &status.kv_tiers);
        for (name, help, value) in [
            ("prefix_cache_blocks", "KV blocks found by prompts.", prefixes.blocks.into()),
            ("kv_tier_ram_bytes", "Of all models together.", tiers.ram_bytes as f64),
            ("kv_tier_disk_bytes", "Of all models together.", tiers.disk_bytes as f64),
        ] {
            self.single(&format!("pelton_{name}"), "gauge", help, value);
        }
        for (name, help, value) in [
            (
                "prefix_cache_queries",
                "Prompt tokens looked up.",
                prefixes.queried_tokens_total as f64,
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens found and not computed.",
                prefixes.hit_tokens_total as f64,
            ),
            (
                "prefix_cache_evictions",
                "KV blocks given to others.",
                prefixes.evicted_blocks_total as f64,
            ),
            (
                "kv_tier_loaded_blocks",
                "KV blocks read instead of computed.",
                tiers.loaded_blocks_total as f64,
            ),
            (
                "kv_tier_dropped_blocks",
                "KV blocks that the disk was too slow for.",
                tiers.dropped_blocks_total as f64,
            ),
            (
                "kv_tier_damaged_blocks",
                "Records on disk that were torn or changed.",
                tiers.damaged_blocks_total as f64,
            ),
            ("kv_tier_disk_errors", "Failed disk accesses.", tiers.disk_errors_total as f64),
        ] {
            self.single(&format!("pelton_{name}_total"), "counter", help, value);
        }
    }

    fn loading(&mut self, status: &EngineStatus) {
        let (weights, encoded) = (&status.weights, &status.encoded);
        let faults = page_faults();
        self.single(
            "pelton_weights_pinned_bytes",
            "gauge",
            "Weights that cannot leave memory.",
            weights.pinned_bytes as f64,
        );
        for (name, help, value) in [
            ("weights_load_seconds", "Time in loads.", weights.load_seconds),
            ("weights_prefetched_bytes", "Read ahead.", weights.prefetched_bytes as f64),
            ("weights_stalled_seconds", "Loads waited for the disk.", weights.stalled_seconds),
            ("weights_pins_refused", "Tensors not pinned.", weights.pins_refused as f64),
            ("weights_minor_faults", "Page faults in loads.", weights.minor_faults as f64),
            ("weights_major_faults", "Those that read a disk.", weights.major_faults as f64),
            ("encoded_texts", "Texts made to tokens.", encoded.texts as f64),
            ("encoded_bytes", "Bytes of them.", encoded.bytes as f64),
            ("encoded_tokens", "Tokens they became.", encoded.tokens as f64),
            ("encoded_shared_spans", "Parts given to threads.", encoded.shared_spans as f64),
            ("encoded_cache_hits", "Words found.", encoded.cache_hits as f64),
            ("encoded_cache_misses", "Words merged.", encoded.cache_misses as f64),
            ("page_faults_minor", "Of this process.", faults.minor as f64),
            ("page_faults_major", "Those that read a disk.", faults.major as f64),
        ] {
            self.single(&format!("pelton_{name}_total"), "counter", help, value);
        }
    }

    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(crate) fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    pub(crate) fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }

    /// The lines below a head.
    pub(crate) fn histogram(&mut self, name: &str, histogram: &Histogram, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (bound, count) in histogram.buckets() {
            total = count;
            let bound = bound.map_or("+Inf".to_owned(), |bound| bound.to_string());
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            self.line(&format!("{name}_bucket"), &labels, total as f64);
        }
        self.line(&format!("{name}_sum"), labels, histogram.sum());
        self.line(&format!("{name}_count"), labels, total as f64);
    }

    /// The lines of one model below a head: quantiles since the start of the server.
    pub(crate) fn summary(&mut self, name: &str, histogram: &Histogram, model: &str) {
        for share in [0.5, 0.9, 0.99] {
            if let Some(value) = histogram.quantile(share) {
                self.line(name, &format!("model=\"{model}\",quantile=\"{share}\""), value);
            }
        }
        let labels = format!("model=\"{model}\"");
        self.line(&format!("{name}_sum"), &labels, histogram.sum());
        self.line(&format!("{name}_count"), &labels, histogram.count() as f64);
    }

    /// What the audit log and the collector of traces got, where there are any.
    fn outside(&mut self, outside: &Outside) {
        let audit = outside.audit.as_ref().map_or(0, AuditLog::lost);
        let (sent, dropped) =
            outside.traces.as_ref().map_or((0, 0), |traces| (traces.sent(), traces.dropped()));
        for (name, help, value) in [
            ("audit_lost", "Requests that are not in the audit log.", audit),
            ("traces_sent", "Requests whose spans the collector took.", sent),
            ("traces_dropped", "Those that it did not.", dropped),
        ] {
            self.single(&format!("pelton_{name}_total"), "counter", help, value as f64);
        }
    }
}

pub(crate) fn label_value(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::answer_metrics::Measure;

    fn model(id: &str) -> ModelStatus {
        let card = engine::ModelCard {
            id: id.to_owned(),
            created: 0,
            context_tokens_max: 1,
            vocabulary_size: 1,
            parameters: 1,
            device: "cpu".to_owned(),
            vector_width: None,
            ranks: false,
            defaults: messages::SamplingParams::default(),
            base: None,
            origin: engine::ModelOrigin::default(),
            answer_format: answer_format::AnswerFormat::of_template(None),
        };
        ModelStatus::always_ready(card, engine::ModelMemory::default(), EngineStatus::default())
    }

    #[test]
    fn histograms_accumulate_upwards() {
        let metrics = Metrics::default();
        let took = |ms, times| {
            let answers = metrics.answers.of_model("a\"b");
            answers.took(Measure::FirstToken, Duration::from_millis(ms), times);
        };
        took(1, 1);
        took(2, 2);
        took(1_000_000, 1);
        metrics.answers.of_model("other").took(Measure::FirstToken, Duration::from_millis(1), 1);
        let (status, models) = (EngineStatus::default(), [model("a\"b")]);
        let text = metrics.render(&status, &models, &Outside::default(), |_| true);
        for line in [
            "pelton_time_to_first_token_seconds_bucket{le=\"0.001\"} 2",
            "pelton_time_to_first_token_seconds_bucket{le=\"0.0025\"} 4",
            "pelton_time_to_first_token_seconds_bucket{le=\"250\"} 4",
            "pelton_time_to_first_token_seconds_bucket{le=\"+Inf\"} 5",
            "pelton_time_to_first_token_seconds_count 5",
            "pelton_time_to_first_token_seconds_sum 1000.006",
            "vllm:time_to_first_token_seconds_count{model_name=\"a\\\"b\"} 4",
            // Both are of vLLM's own dashboards.
            "vllm:request_generation_tokens_count{model_name=\"other\"} 0",
            "vllm:request_max_num_generation_tokens_count{model_name=\"other\"} 0",
            "pelton_model_time_to_first_token_seconds{model=\"a\\\"b\",quantile=\"0.5\"} 0.00175",
            "pelton_model_time_to_first_token_seconds{model=\"a\\\"b\",quantile=\"0.99\"} 250",
            "pelton_model_time_to_first_token_seconds_count{model=\"a\\\"b\"} 4",
        ] {
            assert!(text.lines().any(|given| given == line), "{line}\n{text}");
        }
    }

    #[test]
    fn models_that_are_not_the_callers_are_not_named() {
        let metrics = Metrics::default();
        let _ = metrics.answers.of_model("secret");
        let status = EngineStatus::default();
        let text = metrics.render(&status, &[model("own")], &Outside::default(), |m| m == "own");
        assert!(text.contains("\"own\"") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn each_series_has_one_head() {
        let metrics = Metrics::default();
        metrics.count_response("/health", 200);
        metrics.count_response("/health", 200);
        let models = [model("m"), model("n")];
        let text = metrics.render(&EngineStatus::default(), &models, &Outside::default(), |_| true);
        assert!(text.contains("pelton_http_responses_total{route=\"/health\",status=\"200\"} 2"));
        for id in ["m", "n"] {
            assert!(
                text.contains(&format!("pelton_model_state{{model=\"{id}\",state=\"ready\"}} 1"))
            );
            assert!(text.contains(&format!("pelton_model_loads_total{{model=\"{id}\"}} 1")));
        }
        let mut heads: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let count = heads.len();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), count);
    }
}
