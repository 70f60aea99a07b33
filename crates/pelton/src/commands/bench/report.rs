//! How are this engine's own figures shown? A table for people, JSON for programs.

use std::time::Duration;

use engine::{Bound, Ceilings, ModelCard, ResourceStatus, Roofline, SystemStatistics};
use serde_json::{Value, json};

use super::resources;
use super::samples::Samples;
use super::workload::Test;
use crate::printing::say;

pub(super) struct Report {
    pub(super) card: ModelCard,
    /// `None`: as many as the process may use.
    pub(super) threads: Option<usize>,
    pub(super) load: Duration,
    /// From the start of loading.
    pub(super) first_token: Duration,
    /// Of the whole process, the measured work included and the ceilings not.
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) resources: ResourceStatus,
    pub(super) ceilings: Option<Ceilings>,
    pub(super) rows: Vec<Row>,
    /// After all runs.
    pub(super) statistics: Vec<SystemStatistics>,
}

pub(super) struct Row {
    pub(super) test: Test,
    pub(super) samples: Samples,
    pub(super) roof: Option<Roofline>,
}

impl Report {
    pub(super) fn print(&self, as_json: bool) {
        if as_json {
            say!("{:#}", self.to_json());
        } else {
            self.print_table();
        }
    }

    fn print_table(&self) {
        let threads = self.threads.map_or(String::new(), |count| format!(", {count} threads"));
        say!("{} on {}{threads}", self.card.id, self.card.device);
        let memory = self
            .peak_memory_bytes
            .map_or(String::new(), |bytes| format!(", peak memory {:.0} MB", bytes as f64 / 1e6));
        say!(
            "load {:.2} s, first token {:.2} s after the start of loading{memory}",
            self.load.as_secs_f64(),
            self.first_token.as_secs_f64()
        );
        if let Some(ceilings) = &self.ceilings {
            say!("{}", describe(ceilings));
        }
        let head = ["tok/s median", "lowest to highest", "share of roof"];
        let [median, spread, share] = head;
        say!(
            "\n{:<8} {:>7} {:>7} {:>6} {median:>13} {spread:>20}  {share}",
            "test",
            "tokens",
            "depth",
            "batch"
        );
        for row in &self.rows {
            let Test { kind, tokens, depth, batch } = row.test;
            let share = row.roof.map_or("-".to_owned(), |roof| {
                let share = 100.0 * row.samples.median() / roof.tokens_per_second;
                format!("{share:.0} % of {:.0} ({})", roof.tokens_per_second, bound(roof))
            });
            say!(
                "{:<8} {tokens:>7} {depth:>7} {batch:>6} {:>13.1} {:>20}  {share}",
                kind.name(),
                row.samples.median(),
                row.samples.spread()
            );
        }
        say!("\nstatistics");
        for SystemStatistics { system, counts } in &self.statistics {
            let counts: Vec<String> =
                counts.iter().map(|(name, count)| format!("{name} {}", shown(*count))).collect();
            say!("  {system:<13} {}", counts.join(", "));
        }
        resources::print(&self.resources);
    }

    fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::to_json).collect();
        json!({
            "model": self.card.id,
            "device": self.card.device,
            "threads": self.threads,
            "load_seconds": self.load.as_secs_f64(),
            "first_token_seconds": self.first_token.as_secs_f64(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "ceilings": self.ceilings.as_ref().map(|ceilings| json!({
                "read_set_bytes": ceilings.read_set_bytes,
                "read_bytes_per_second": ceilings.read_bytes_per_second,
                "float_ops_per_second": ceilings.float_ops_per_second,
                "integer_ops_per_second": ceilings.integer_ops_per_second,
                "bfloat_ops_per_second": ceilings.bfloat_ops_per_second,
            })),
            "resources": resources::to_json(&self.resources),
            "results": rows,
            "statistics": statistics_json(&self.statistics),
        })
    }
}

/// System, name and count of each.
pub(super) fn statistics_json(statistics: &[SystemStatistics]) -> Value {
    let counts = |system: &SystemStatistics| -> serde_json::Map<String, Value> {
        system.counts.iter().map(|(name, count)| ((*name).to_owned(), json!(count))).collect()
    };
    let systems = statistics.iter().map(|system| (system.system.to_owned(), counts(system).into()));
    Value::Object(systems.collect())
}

/// Whole numbers as they are, others to the thousandth.
fn shown(count: f64) -> String {
    if count.fract() == 0.0 { format!("{count}") } else { format!("{count:.3}") }
}

impl Row {
    fn to_json(&self) -> Value {
        let roof = self
            .roof
            .map(|roof| json!({"tokens_per_second": roof.tokens_per_second, "bound": bound(roof)}));
        json!({
            "test": self.test.kind.name(),
            "tokens": self.test.tokens,
            "depth": self.test.depth,
            "batch": self.test.batch,
            "tokens_per_second": self.samples.median(),
            "runs": self.samples.rates(),
            "roof": roof,
        })
    }
}

fn bound(roof: Roofline) -> &'static str {
    match roof.bound {
        Bound::Reading => "reading",
        Bound::Computing => "computing",
    }
}

/// The machine's ceilings in one line.
fn describe(ceilings: &Ceilings) -> String {
    let giga = |rate: f64| format!("{:.0}", rate / 1e9);
    let mut text = format!(
        "this machine now: reads {:.1} GB/s of a set of {:.0} MB; G operations/s: {} in f32",
        ceilings.read_bytes_per_second / 1e9,
        ceilings.read_set_bytes as f64 / 1e6,
        giga(ceilings.float_ops_per_second)
    );
    if let Some(rate) = ceilings.bfloat_ops_per_second {
        text.push_str(&format!(", {} in bf16", giga(rate)));
    }
    if let Some(rate) = ceilings.integer_ops_per_second {
        text.push_str(&format!(", {} in 8-bit integers", giga(rate)));
    }
    text
}
