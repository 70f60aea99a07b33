//! Which systems can be switched off, and by which keys of the configuration?
//!
//! "On" is said as plainly as "off": a configuration that has a system off already is overruled,
//! for else both arms would be the same and the row would be noise.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

type Keys = &'static [(&'static str, &'static str)];

/// A system and its switch.
pub(super) struct System {
    pub(super) name: &'static str,
    /// A key that `off` has too is set only where the configuration says what `off` does: a ring of
    /// three stays one. `{folder}` is one for this run.
    on: Keys,
    off: Keys,
    /// Systems that leave it nothing to do while they are on, so that they are off where it is
    /// looked at.
    behind: &'static [&'static str],
}

/// One entry each. A key that the configuration lacks leaves its system out.
const SYSTEMS: &[System] = &[
    System {
        name: "heap_pool",
        on: &[("heap_pool.enabled", "true")],
        off: &[("heap_pool.enabled", "false")],
        behind: &[],
    },
    System {
        name: "blit_queue",
        on: &[("blit_queue.enabled", "true")],
        off: &[("blit_queue.enabled", "false")],
        behind: &[],
    },
    System {
        name: "command_ring",
        on: &[("command_ring.ring_size", "2")],
        off: &[("command_ring.ring_size", "1")],
        behind: &[],
    },
    System {
        name: "tokenizer",
        on: &[("tokenizer.num_threads", "null"), ("tokenizer.cache_kb", "512")],
        off: &[("tokenizer.num_threads", "1"), ("tokenizer.cache_kb", "0")],
        behind: &[],
    },
    // All that follows of how weights are read, together: what a start from nothing gains.
    System {
        name: "weight_manager",
        on: &[
            ("weights.prefetch_threads", "2"),
            ("weights.warmup_buffer_mb", "512"),
            ("weights.use_mmap", "true"),
            ("weights.direct_io", "true"),
        ],
        off: &[
            ("weights.prefetch_threads", "0"),
            ("weights.warmup_buffer_mb", "0"),
            ("weights.use_mmap", "false"),
            ("weights.direct_io", "false"),
        ],
        behind: &["repack_cache"],
    },
    System {
        name: "direct_io",
        on: &[("weights.direct_io", "true")],
        off: &[("weights.direct_io", "false")],
        // Which is read in the same way either way.
        behind: &["repack_cache"],
    },
    System {
        name: "read_ahead",
        on: &[("weights.prefetch_threads", "2")],
        off: &[("weights.prefetch_threads", "0")],
        // Whose threads read ahead, too.
        behind: &["repack_cache", "direct_io"],
    },
    System {
        name: "mapping",
        on: &[("weights.use_mmap", "true")],
        off: &[("weights.use_mmap", "false")],
        behind: &["repack_cache", "direct_io"],
    },
    System {
        name: "warm_up",
        on: &[("weights.warmup_buffer_mb", "512")],
        off: &[("weights.warmup_buffer_mb", "0")],
        behind: &[],
    },
    System {
        name: "pinning",
        on: &[("weights.pin_critical_weights", "true")],
        off: &[("weights.pin_critical_weights", "false"), ("weights.pin_all_weights", "false")],
        behind: &[],
    },
    System {
        name: "repack_cache",
        on: &[("model.repack_cache", "{folder}/packed")],
        off: &[("model.repack_cache", "false")],
        behind: &[],
    },
    System {
        name: "prefix_cache",
        on: &[("prefix_cache", "true")],
        // The tiers keep what it finds.
        off: &[
            ("prefix_cache", "false"),
            ("kv_tiers.ram_bytes", "0"),
            ("kv_tiers.disk_bytes", "0"),
        ],
        behind: &[],
    },
    System {
        name: "kv_tiers",
        on: &[("kv_tiers.ram_bytes", "1073741824"), ("prefix_cache", "true")],
        off: &[("kv_tiers.ram_bytes", "0"), ("kv_tiers.disk_bytes", "0")],
        behind: &[],
    },
    System {
        name: "sharing",
        on: &[("sharing.enabled", "true")],
        off: &[("sharing.enabled", "false")],
        behind: &[],
    },
    System {
        name: "speculation",
        on: &[("speculation", "auto")],
        off: &[("speculation", "off")],
        behind: &[],
    },
    System {
        name: "pacing",
        on: &[("limits.itl_target_ms", "100")],
        off: &[("limits.itl_target_ms", "0")],
        behind: &[],
    },
];

fn named(name: &str) -> Option<&'static System> {
    SYSTEMS.iter().find(|system| system.name == name)
}

/// Who is off in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arm {
    AllOff,
    /// All others are on; none: all are.
    Without(Vec<&'static str>),
}

impl Arm {
    pub(super) const ALL_ON: Self = Self::Without(Vec::new());
}

impl fmt::Display for Arm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllOff => formatter.write_str("all off"),
            Self::Without(names) if names.is_empty() => formatter.write_str("all on"),
            Self::Without(names) => write!(formatter, "{} off", names.join("+")),
        }
    }
}

impl System {
    /// What this system is compared with, and the same without it.
    pub(super) fn arms(&self) -> [Arm; 2] {
        let without = [self.behind, &[self.name]].concat();
        [Arm::Without(self.behind.to_vec()), Arm::Without(without)]
    }
}

/// The systems of these names (`all`: every one), and the names of those that this build lacks.
///
/// # Errors
/// For a name that is none, or is said twice.
pub(super) fn chosen(asked: &[&str]) -> Result<(Vec<&'static System>, Vec<&'static str>)> {
    for (index, name) in asked.iter().enumerate() {
        if *name != "all" && named(name).is_none() {
            let names: Vec<&str> = SYSTEMS.iter().map(|system| system.name).collect();
            bail!("--ablate: there is no system `{name}`; systems: all, {}", names.join(", "));
        }
        ensure!(!asked[..index].contains(name), "--ablate: `{name}` is named twice");
    }
    let is_all = asked.contains(&"all");
    ensure!(!is_all || asked.len() == 1, "--ablate: `all` has the others in it, name it alone");
    let keys = ::config::keys();
    let is_there = |system: &&System| {
        system.off.iter().all(|(path, _)| keys.iter().any(|key| key.path == *path))
    };
    let is_asked = |system: &&System| is_all || asked.contains(&system.name);
    let (there, absent): (Vec<&System>, Vec<&System>) =
        SYSTEMS.iter().filter(is_asked).partition(is_there);
    if there.is_empty() {
        bail!("--ablate: nothing is left to switch off");
    }
    Ok((there, absent.iter().map(|system| system.name).collect()))
}

/// Each once: all on, all off, and what each system is seen by.
pub(super) fn arms(systems: &[&System]) -> Vec<Arm> {
    let mut arms = Vec::new();
    let all = if systems.len() > 1 { vec![Arm::ALL_ON, Arm::AllOff] } else { Vec::new() };
    for arm in all.into_iter().chain(systems.iter().flat_map(|system| system.arms())) {
        if !arms.contains(&arm) {
            arms.push(arm);
        }
    }
    arms
}

/// Keys that the configuration has off although their systems are to be on: system, key, and what
/// it is in the other arms.
pub(super) fn overruled(
    systems: &[&'static System],
    configured: &[::config::Setting],
) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut found = Vec::new();
    for system in systems {
        for (key, on) in system.on {
            let off = system.off.iter().find(|(path, _)| path == key).map(|(_, off)| *off);
            let is_said = configured.iter().any(|setting| {
                setting.key.path == *key && setting.origin != ::config::Origin::Default
            });
            if is_said && off.is_some() && off == shown(configured, key).as_deref() {
                found.push((system.name, *key, *on));
            }
        }
    }
    found
}

/// A key's value as a flag writes it.
fn shown(configured: &[::config::Setting], key: &str) -> Option<String> {
    let setting = configured.iter().find(|setting| setting.key.path == key)?;
    Some(match &setting.value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// The keys of one arm, over what is `configured`.
pub(super) fn keys(
    arm: &Arm,
    systems: &[&System],
    configured: &[::config::Setting],
    folder: &Path,
) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for system in systems {
        for (key, on) in system.on {
            let off = system.off.iter().find(|(path, _)| path == key).map(|(_, off)| *off);
            let is_own = on.contains("{folder}");
            if is_own || off.is_none() || off == shown(configured, key).as_deref() {
                let on = on.replace("{folder}", &folder.display().to_string());
                keys.insert((*key).to_owned(), on);
            }
        }
    }
    // Last, so that what is off is off, whoever else asks for it. Whoever leaves one of these
    // nothing to do is off even where nobody asked what it is worth.
    let is_chosen = |system: &&System| systems.iter().any(|chosen| chosen.name == system.name);
    for system in SYSTEMS {
        let is_off = match arm {
            Arm::AllOff => is_chosen(&system),
            Arm::Without(names) => names.contains(&system.name),
        };
        if is_off {
            let off = system.off.iter().map(|(key, off)| ((*key).to_owned(), (*off).to_owned()));
            keys.extend(off);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use ::config::{Config, Loaded, Sources};

    use super::*;

    fn load(flags: impl IntoIterator<Item = (String, String)>) -> Loaded {
        let flags = flags.into_iter().collect();
        Sources { flags, ..Sources::default() }.load().unwrap()
    }

    /// What an arm runs with where flags say this.
    fn config(arm: &Arm, systems: &[&System], flags: &[(&str, &str)]) -> Config {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut all: BTreeMap<String, String> = flags.iter().map(own).collect();
        let configured = load(all.clone()).settings;
        all.extend(keys(arm, systems, &configured, Path::new("/kept")));
        load(all).config
    }

    #[test]
    fn each_arm_changes_what_the_configuration_says() {
        let (systems, _) = chosen(&["all"]).unwrap();
        let arms = arms(&systems);
        for (index, arm) in arms.iter().enumerate() {
            for other in &arms[..index] {
                let [one, two] = [arm, other].map(|arm| config(arm, &systems, &[]));
                assert_ne!(one, two, "{arm} is {other}");
            }
        }
    }

    #[test]
    fn what_is_on_is_on_whatever_the_configuration_says() {
        let (systems, _) = chosen(&["all"]).unwrap();
        for system in &systems {
            let alone = [*system];
            let [with, without] = system.arms();
            let off = config(&without, &alone, &[]);
            // Each is off by flags, and on all the same.
            assert_ne!(config(&with, &alone, system.off), off, "{} is off", system.name);
            assert_ne!(config(&Arm::ALL_ON, &systems, system.off), off, "{}", system.name);
            let off = system.off.iter().map(|(key, off)| ((*key).to_owned(), (*off).to_owned()));
            let configured = load(off);
            let overruled = overruled(&alone, &configured.settings);
            let is_said = overruled.iter().any(|(name, ..)| *name == system.name);
            assert!(is_said, "nobody hears that {} is switched on", system.name);
        }
        // What is on already stays as it is.
        let tuned = [("command_ring.ring_size", "3"), ("speculation", "always")];
        let config = config(&Arm::ALL_ON, &systems, &tuned);
        assert_eq!(config.command_ring.ring_size, 3);
        assert_eq!(config.speculation, ::config::SpeculationMode::Always);
    }

    #[test]
    fn who_leaves_a_system_nothing_to_do_is_off_beside_it() {
        let (systems, _) = chosen(&["read_ahead"]).unwrap();
        let flags = [("model.repack_cache", "true"), ("weights.direct_io", "true")];
        let arms = arms(&systems);
        assert_eq!(arms, systems[0].arms(), "two arms, compared with each other");
        let [with, without] = [&arms[0], &arms[1]].map(|arm| config(arm, &systems, &flags));
        for config in [&with, &without] {
            assert_eq!(config.model.repack_cache, ::config::RepackCache::default());
            assert_eq!(config.weights.direct_io.set(), Some(false));
        }
        assert_eq!([with, without].map(|config| config.weights.prefetch_threads), [2, 0]);
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        for (asked, named) in [
            (&["heap"][..], &["`heap`", "heap_pool"][..]),
            (&["heap_pool", "sharing", "heap_pool"], &["`heap_pool`", "twice"]),
            (&["all", "sharing"], &["`all`"]),
        ] {
            let error = chosen(asked).err().unwrap().to_string();
            assert!(named.iter().all(|word| error.contains(word)), "{error}");
        }
        assert_eq!(arms(&chosen(&["sharing"]).unwrap().0).len(), 2);
    }
}
