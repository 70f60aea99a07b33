//! Which systems can be switched off, and by which keys of the configuration?

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

/// A system and its switch.
pub(super) struct System {
    pub(super) name: &'static str,
    /// What switches it on, where it is not on by default. `{folder}` is one for this run.
    on: &'static [(&'static str, &'static str)],
    off: &'static [(&'static str, &'static str)],
}

/// One line each. A key that the configuration lacks leaves its system out.
const SYSTEMS: &[System] = &[
    System { name: "heap_pool", on: &[], off: &[("heap_pool.enabled", "false")] },
    System { name: "blit_queue", on: &[], off: &[("blit_queue.enabled", "false")] },
    System { name: "command_ring", on: &[], off: &[("command_ring.ring_size", "1")] },
    System {
        name: "tokenizer",
        on: &[],
        off: &[("tokenizer.num_threads", "1"), ("tokenizer.cache_kb", "0")],
    },
    System {
        name: "read_ahead",
        on: &[],
        off: &[("weights.prefetch_threads", "0"), ("weights.warmup_buffer_mb", "0")],
    },
    System {
        name: "pinning",
        on: &[("weights.pin_critical_weights", "true")],
        off: &[("weights.pin_critical_weights", "false"), ("weights.pin_all_weights", "false")],
    },
    System {
        name: "repack_cache",
        on: &[("model.repack_cache", "{folder}/packed")],
        off: &[("model.repack_cache", "false")],
    },
    System {
        name: "prefix_cache",
        on: &[],
        // The tiers keep what it finds.
        off: &[("prefix_cache", "false"), ("kv_tiers.ram_bytes", "0")],
    },
    System {
        name: "kv_tiers",
        on: &[("kv_tiers.ram_bytes", "1073741824")],
        off: &[("kv_tiers.ram_bytes", "0")],
    },
    System { name: "sharing", on: &[], off: &[("sharing.enabled", "false")] },
    System { name: "speculation", on: &[], off: &[("speculation", "off")] },
    System { name: "pacing", on: &[], off: &[("limits.itl_target_ms", "0")] },
];

/// Who is off in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arm {
    AllOn,
    AllOff,
    Without(&'static str),
}

impl fmt::Display for Arm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllOn => formatter.write_str("all on"),
            Self::AllOff => formatter.write_str("all off"),
            Self::Without(name) => write!(formatter, "{name} off"),
        }
    }
}

/// The systems of these names (`all`: every one), and the names of those that this build lacks.
///
/// # Errors
/// For a name that is none.
pub(super) fn chosen(asked: &[&str]) -> Result<(Vec<&'static System>, Vec<&'static str>)> {
    for name in asked.iter().filter(|name| **name != "all") {
        if !SYSTEMS.iter().any(|system| system.name == *name) {
            let names: Vec<&str> = SYSTEMS.iter().map(|system| system.name).collect();
            bail!("--ablate: there is no system `{name}`; systems: all, {}", names.join(", "));
        }
    }
    let keys = ::config::keys();
    let is_there = |system: &&System| {
        system.off.iter().all(|(path, _)| keys.iter().any(|key| key.path == *path))
    };
    let is_asked = |system: &&System| asked.contains(&"all") || asked.contains(&system.name);
    let (there, absent): (Vec<&System>, Vec<&System>) =
        SYSTEMS.iter().filter(is_asked).partition(is_there);
    if there.is_empty() {
        bail!("--ablate: nothing is left to switch off");
    }
    Ok((there, absent.iter().map(|system| system.name).collect()))
}

/// All on first, all off second, then each off alone.
pub(super) fn arms(systems: &[&System]) -> Vec<Arm> {
    let mut arms = vec![Arm::AllOn];
    if systems.len() > 1 {
        arms.push(Arm::AllOff);
    }
    arms.extend(systems.iter().map(|system| Arm::Without(system.name)));
    arms
}

/// The keys of one arm.
pub(super) fn keys(arm: &Arm, systems: &[&System], folder: &Path) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut set = |list: &[(&str, &str)]| {
        for (key, value) in list {
            let value = value.replace("{folder}", &folder.display().to_string());
            keys.insert((*key).to_owned(), value);
        }
    };
    for system in systems {
        set(system.on);
    }
    // Last, so that what is off is off, whoever else asks for it.
    for system in systems {
        let is_off = match arm {
            Arm::AllOn => false,
            Arm::AllOff => true,
            Arm::Without(name) => *name == system.name,
        };
        if is_off {
            set(system.off);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_arm_changes_what_the_configuration_says() {
        let (systems, _) = chosen(&["all"]).unwrap();
        let load = |arm: &Arm| {
            let flags = keys(arm, &systems, Path::new("/kept")).into_iter().collect();
            let sources = ::config::Sources { flags, ..::config::Sources::default() };
            sources.load().unwrap().config
        };
        let arms = arms(&systems);
        for (index, arm) in arms.iter().enumerate() {
            for other in &arms[..index] {
                assert_ne!(load(arm), load(other), "{arm} is {other}");
            }
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let error = chosen(&["heap"]).err().unwrap().to_string();
        assert!(error.contains("`heap`") && error.contains("heap_pool"), "{error}");
        assert_eq!(arms(&chosen(&["sharing"]).unwrap().0).len(), 2);
    }
}
