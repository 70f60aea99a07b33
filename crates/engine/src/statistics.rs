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
            self.of_weights(),
            self.of_tokenizer(),
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

    fn of_weights(&self) -> SystemStatistics {
        let weights = &self.weights;
        let counts = vec![
            ("load_seconds", weights.load_seconds),
            ("prefetched_bytes", weights.prefetched_bytes as f64),
            ("stalled_seconds", weights.stalled_seconds),
            ("pinned_bytes", weights.pinned_bytes as f64),
            ("pins_refused_total", weights.pins_refused as f64),
            ("minor_faults_total", weights.minor_faults as f64),
            ("major_faults_total", weights.major_faults as f64),
        ];
        SystemStatistics { system: "weights", counts }
    }

    fn of_tokenizer(&self) -> SystemStatistics {
        let encoded = &self.encoded;
        let counts = vec![
            ("texts_total", encoded.texts as f64),
            ("encoded_bytes", encoded.bytes as f64),
            ("encoded_tokens", encoded.tokens as f64),
            ("shared_spans_total", encoded.shared_spans as f64),
            ("cache_hits_total", encoded.cache_hits as f64),
            ("cache_misses_total", encoded.cache_misses as f64),
        ];
        SystemStatistics { system: "tokenizer", counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_has_its_counts() {
        let statistics = EngineStatus::default().statistics();
        let names: Vec<&str> = statistics.iter().map(|of| of.system).collect();
        for system in ["weights", "tokenizer", "prefix_cache", "kv_tiers", "sharing"] {
            assert!(names.contains(&system), "{system} of {names:?}");
        }
    }
}
