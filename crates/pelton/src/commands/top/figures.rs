//! Which numbers does a person want to see? Worked out from two looks at a server.

use serde_json::{Value, json};

use super::counters::{Counters, Span};
use crate::printing::visible;

pub(super) const FIRST_TOKEN: &str = "pelton_time_to_first_token_seconds";
pub(super) const NEXT_TOKEN: &str = "pelton_inter_token_latency_seconds";

/// Median, 95th and 99th percentile, in seconds.
pub(super) type Percentiles = [Option<f64>; 3];

/// What a server does now.
pub(super) struct Figures {
    pub(super) ready: bool,
    pub(super) healthy: bool,
    /// Tokens generated, and positions computed, in a second.
    pub(super) generated: Option<f64>,
    pub(super) computed: Option<f64>,
    pub(super) running: f64,
    pub(super) waiting: f64,
    /// Tokens computed in one step, on average.
    pub(super) batch: Option<f64>,
    pub(super) first_token: Percentiles,
    pub(super) next_token: Percentiles,
    pub(super) kv_used: f64,
    pub(super) kv_total: f64,
    pub(super) heap_used: f64,
    pub(super) heap_reserved: f64,
    /// Of the time with work, what the device computed.
    pub(super) device_busy: Option<f64>,
    /// Of the time that copies took, what no step waited for.
    pub(super) copies_hidden: Option<f64>,
    pub(super) prompts_found: Option<f64>,
    pub(super) models: Vec<ModelFigures>,
}

pub(super) struct ModelFigures {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) running: u64,
    pub(super) running_limit: u64,
    pub(super) waiting: u64,
    pub(super) generated: Option<f64>,
    pub(super) kv_share: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
}

impl Figures {
    /// Rates are of `step`, percentiles and shares of `window`, which is longer.
    pub(super) fn new(step: &Span<'_>, window: &Span<'_>, models: &[Value]) -> Self {
        let now = step.after;
        let percentiles = |name| [0.5, 0.95, 0.99].map(|share| window.percentile(name, share));
        Self {
            ready: now.value("pelton_ready") > 0.0,
            healthy: now.value("pelton_healthy") > 0.0,
            generated: step.rate("pelton_generation_tokens_total"),
            computed: step.rate("pelton_computed_tokens_total"),
            running: now.value("pelton_sequences_running"),
            waiting: now.value("pelton_sequences_waiting"),
            batch: window.share("pelton_computed_tokens_total", "pelton_steps_total"),
            first_token: percentiles(FIRST_TOKEN),
            next_token: percentiles(NEXT_TOKEN),
            kv_used: now.value("pelton_kv_blocks_used"),
            kv_total: now.value("pelton_kv_blocks_total"),
            heap_used: now.value("pelton_heap_pool_used_bytes"),
            heap_reserved: now.value("pelton_heap_pool_reserved_bytes"),
            device_busy: without(
                window,
                "pelton_ring_idle_seconds_total",
                &["pelton_ring_run_seconds_total", "pelton_ring_idle_seconds_total"],
            ),
            copies_hidden: without(
                window,
                "pelton_blit_waited_seconds_total",
                &["pelton_blit_busy_seconds_total"],
            ),
            prompts_found: window
                .share("pelton_prefix_cache_hits_total", "pelton_prefix_cache_queries_total"),
            models: models.iter().map(|model| ModelFigures::new(model, step)).collect(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let percentiles =
            |[p50, p95, p99]: Percentiles| json!({"p50": p50, "p95": p95, "p99": p99});
        json!({
            "ready": self.ready,
            "healthy": self.healthy,
            "generated_tokens_per_second": self.generated,
            "computed_tokens_per_second": self.computed,
            "running": self.running,
            "waiting": self.waiting,
            "step_tokens": self.batch,
            "first_token_seconds": percentiles(self.first_token),
            "next_token_seconds": percentiles(self.next_token),
            "kv_blocks_used": self.kv_used,
            "kv_blocks_total": self.kv_total,
            "heap_used_bytes": self.heap_used,
            "heap_reserved_bytes": self.heap_reserved,
            "device_busy_share": self.device_busy,
            "copies_hidden_share": self.copies_hidden,
            "prompts_found_share": self.prompts_found,
            "models": self.models.iter().map(ModelFigures::to_json).collect::<Vec<_>>(),
        })
    }
}

/// The share of some times that is left without another.
fn without(window: &Span<'_>, part: &str, whole: &[&str]) -> Option<f64> {
    let part = window.growth(part)?;
    let whole: f64 = whole.iter().map(|name| window.growth(name)).sum::<Option<f64>>()?;
    (whole > 0.0).then(|| (1.0 - part / whole).max(0.0))
}

impl ModelFigures {
    fn new(model: &Value, step: &Span<'_>) -> Self {
        let id = model["id"].as_str().unwrap_or("?");
        let (queue, counters): (&Value, &Counters) = (&model["queue"], step.after);
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Self {
            name: visible(id).replace(['\n', '\t'], " "),
            state: visible(model["state"].as_str().unwrap_or("?")),
            running: number(&queue["running"]),
            running_limit: number(&queue["running_limit"]),
            waiting: number(&queue["waiting"]) + number(&model["requests_waiting_for_load"]),
            generated: step.rate_of_model("vllm:generation_tokens_total", id),
            kv_share: counters.of_model("vllm:kv_cache_usage_perc", id),
            memory_bytes: model["memory"]["used"]["total"].as_u64(),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "id": self.name,
            "state": self.state,
            "running": self.running,
            "running_limit": self.running_limit,
            "waiting": self.waiting,
            "generated_tokens_per_second": self.generated,
            "kv_share": self.kv_share,
            "memory_bytes": self.memory_bytes,
        })
    }
}
