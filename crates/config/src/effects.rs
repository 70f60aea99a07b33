//! Which keys are set and do nothing, for another key says so?
//!
//! No error: a file may keep the sizes of what is off for now. But it is said, for whoever sets a
//! key wants something of it.

use crate::Config;
use crate::layers::{Loaded, Origin};

/// Keys that need something, which is looked for in the configuration.
struct Need {
    keys: &'static [&'static str],
    is_met: fn(&Config) -> bool,
    text: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        keys: &[
            "heap_pool.heap_size_mb",
            "heap_pool.num_heaps",
            "heap_pool.warmup_sizes",
            "heap_pool.allow_growth",
        ],
        is_met: |config| config.heap_pool.enabled,
        text: "heap_pool.enabled is false, so that there are no heaps",
    },
    Need {
        keys: &["blit_queue.max_concurrent_ops"],
        is_met: |config| config.blit_queue.enabled,
        text: "blit_queue.enabled is false",
    },
    Need {
        keys: &["blit_queue.staging_buffer_size_mb", "kv_tiers.disk_path"],
        is_met: |config| config.kv_tiers.disk_bytes > 0,
        text: "kv_tiers.disk_bytes is 0, so that nothing goes to disk",
    },
    Need {
        keys: &["weights.critical_layers"],
        is_met: |config| config.weights.pin_critical_weights && !config.weights.pin_all_weights,
        text: "it says which weights weights.pin_critical_weights pins, and that is off or all are",
    },
    Need {
        keys: &["weights.max_pinned_mb"],
        is_met: |config| config.weights.pin_critical_weights || config.weights.pin_all_weights,
        text: "nothing is pinned: neither weights.pin_critical_weights nor weights.pin_all_weights",
    },
    Need {
        keys: &[
            "sharing.readers_max",
            "sharing.answers_max",
            "sharing.tokens_max",
            "sharing.memory_mb",
            "sharing.ttl_seconds",
            "sharing.folder",
        ],
        is_met: |config| config.sharing.enabled,
        text: "sharing.enabled is false",
    },
];

impl Loaded {
    /// A sentence for each key that somebody set to no effect.
    pub fn without_effect(&self) -> Vec<String> {
        let set = self.settings.iter().filter(|setting| {
            setting.origin != Origin::Default && setting.value != setting.key.default
        });
        let sentences = set.filter_map(|setting| {
            let path = setting.key.path.as_str();
            let mut needs = NEEDS.iter().filter(|need| need.keys.contains(&path));
            let need = needs.find(|need| !(need.is_met)(&self.config))?;
            Some(format!("`{path}` has no effect: {}", need.text))
        });
        sentences.collect()
    }
}
