//! What has each system done so far? Names and numbers, for whoever prints them.

use crate::EngineStatus;

/// One system's counts.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemStatistics {
    /// As the configuration and `pelton bench --ablate` call it.
    pub system: &'static str,
    /// With the unit last in the name.
    pub counts: Vec<(&'static str, f64)>,
}

impl EngineStatus {
    /// Every system, one entry each.
    pub fn statistics(&self) -> Vec<SystemStatistics> {
        let of = |system, counts: &[(&'static str, f64)]| SystemStatistics {
            system,
            counts: counts.to_vec(),
        };
        let (prefixes, tiers) = (&self.prefix_cache, &self.kv_tiers);
        let (sharing, guesses) = (&self.sharing, &self.speculation);
        vec![
            of(
                "steps",
                &[
                    ("steps_total", self.steps_total as f64),
                    ("step_seconds_total", self.step_seconds_total),
                    ("computed_tokens_total", self.computed_tokens_total as f64),
                    ("generation_tokens_total", self.generation_tokens_total as f64),
                    ("preemptions_total", self.preemptions_total as f64),
                ],
            ),
            of(
                "prefix_cache",
                &[
                    ("queried_tokens_total", prefixes.queried_tokens_total as f64),
                    ("hit_tokens_total", prefixes.hit_tokens_total as f64),
                    ("evicted_blocks_total", prefixes.evicted_blocks_total as f64),
                    ("blocks", prefixes.blocks.into()),
                ],
            ),
            of(
                "kv_tiers",
                &[
                    ("ram_bytes", tiers.ram_bytes as f64),
                    ("disk_bytes", tiers.disk_bytes as f64),
                    ("loaded_blocks_total", tiers.loaded_blocks_total as f64),
                    ("dropped_blocks_total", tiers.dropped_blocks_total as f64),
                    ("damaged_blocks_total", tiers.damaged_blocks_total as f64),
                ],
            ),
            of(
                "sharing",
                &[
                    ("hits_total", sharing.hits_total as f64),
                    ("joins_total", sharing.joins_total as f64),
                    ("misses_total", sharing.misses_total as f64),
                    ("unshared_total", sharing.unshared_total as f64),
                    ("shared_tokens_total", sharing.tokens_shared_total as f64),
                    ("replay_bytes", sharing.replay_bytes as f64),
                ],
            ),
            of(
                "speculation",
                &[
                    ("checks_total", guesses.checks_total as f64),
                    ("accepted_tokens_total", guesses.accepted_tokens_total as f64),
                    ("rejected_tokens_total", guesses.rejected_tokens_total as f64),
                    ("switched_off_total", guesses.switched_off_total as f64),
                ],
            ),
        ]
    }
}
