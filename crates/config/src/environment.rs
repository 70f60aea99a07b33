//! What does the environment override?

use std::str::FromStr;

use crate::{Config, ConfigError, RepackCache};

/// The variables that override the file, and the key each stands for.
pub const VARIABLES: &[(&str, &str)] = &[
    ("PELTON_ALLOW_PUBLIC", "server.allow_public"),
    ("PELTON_CONTEXT_TOKENS", "model.context_tokens"),
    ("PELTON_DEVICE", "device"),
    ("PELTON_DRAFT_MODEL", "draft_model"),
    ("PELTON_HOST", "server.host"),
    ("PELTON_ISA", "isa"),
    ("PELTON_KV_CACHE_MB", "limits.kv_cache_mb"),
    ("PELTON_KV_DTYPE", "kv_dtype"),
    ("PELTON_KV_TIERS_DISK_BYTES", "kv_tiers.disk_bytes"),
    ("PELTON_KV_TIERS_DISK_PATH", "kv_tiers.disk_path"),
    ("PELTON_KV_TIERS_RAM_BYTES", "kv_tiers.ram_bytes"),
    ("PELTON_MEMORY_BUDGET_MB", "limits.memory_budget_mb"),
    ("PELTON_MODEL", "model.name"),
    ("PELTON_PORT", "server.port"),
    ("PELTON_PREFIX_CACHE", "prefix_cache"),
    ("PELTON_REPACK_CACHE", "model.repack_cache"),
    ("PELTON_SEQUENCES_MAX", "limits.sequences_max"),
    ("PELTON_SHARING", "sharing.enabled"),
    ("PELTON_SHARING_FOLDER", "sharing.folder"),
    ("PELTON_SPECULATION", "speculation"),
    ("PELTON_STEP_TOKENS_MAX", "limits.step_tokens_max"),
    ("PELTON_THREADS", "threads"),
    ("PELTON_WAITING_MAX", "limits.waiting_max"),
];

const WHOLE_NUMBER: &str = "a whole number";
const PORT: &str = "a port, 0 to 65535";
const MODE: &str = "`off`, `auto` or `always`";
const TRUTH: &str = "`true` or `false`";

/// Overrides `config` by the variables that are set; an empty one counts as not set.
pub(crate) fn apply(
    config: &mut Config,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    for &(variable, key) in VARIABLES {
        let Some(value) = environment(variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        set(config, key, &value).map_err(|expected| ConfigError::Variable {
            variable,
            value,
            expected,
        })?;
    }
    Ok(())
}

/// `Err` says what the value must be.
fn set(config: &mut Config, key: &str, value: &str) -> Result<(), &'static str> {
    let server = &mut config.server;
    let limits = &mut config.limits;
    let tiers = &mut config.kv_tiers;
    match key {
        "device" => config.device = value.to_owned(),
        "draft_model" => config.draft_model = Some(value.to_owned()),
        "isa" => config.isa = Some(value.to_owned()),
        "kv_dtype" => config.kv_dtype = Some(value.to_owned()),
        "kv_tiers.disk_bytes" => tiers.disk_bytes = parse(value, WHOLE_NUMBER)?,
        "kv_tiers.disk_path" => tiers.disk_path = Some(value.into()),
        "kv_tiers.ram_bytes" => tiers.ram_bytes = parse(value, WHOLE_NUMBER)?,
        "limits.kv_cache_mb" => limits.kv_cache_mb = Some(parse(value, WHOLE_NUMBER)?),
        "limits.memory_budget_mb" => limits.memory_budget_mb = Some(parse(value, WHOLE_NUMBER)?),
        "limits.sequences_max" => limits.sequences_max = parse(value, WHOLE_NUMBER)?,
        "limits.step_tokens_max" => limits.step_tokens_max = parse(value, WHOLE_NUMBER)?,
        "limits.waiting_max" => limits.waiting_max = parse(value, WHOLE_NUMBER)?,
        "model.context_tokens" => config.model.context_tokens = Some(parse(value, WHOLE_NUMBER)?),
        "model.repack_cache" => config.model.repack_cache = RepackCache::parse(value),
        "model.name" => config.model.name = Some(value.to_owned()),
        "prefix_cache" => config.prefix_cache = truth(value)?,
        "server.allow_public" => server.allow_public = truth(value)?,
        "server.host" => server.host = value.to_owned(),
        "server.port" => server.port = parse(value, PORT)?,
        "sharing.enabled" => config.sharing.enabled = truth(value)?,
        "sharing.folder" => config.sharing.folder = Some(value.to_owned()),
        "speculation" => config.speculation = parse(value, MODE)?,
        "threads" => config.threads = Some(parse(value, WHOLE_NUMBER)?),
        other => unreachable!("invariant: VARIABLES names only keys of set, not {other}"),
    }
    Ok(())
}

fn parse<T: FromStr>(value: &str, expected: &'static str) -> Result<T, &'static str> {
    value.trim().parse().map_err(|_| expected)
}

fn truth(value: &str) -> Result<bool, &'static str> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err(TRUTH),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_variable_changes_one_config() {
        for &(variable, key) in VARIABLES {
            let value = match key {
                "prefix_cache" => "false",
                "server.allow_public" => "true",
                "sharing.enabled" => "false",
                "speculation" => "off",
                "device" | "draft_model" | "isa" | "kv_dtype" | "model.name" | "server.host"
                | "sharing.folder" => "other",
                _ => "7",
            };
            // A budget on disk needs a place there.
            let path = |name: &str| (name == "PELTON_KV_TIERS_DISK_PATH").then(|| "any".to_owned());
            let given = |name: &str| (name == variable).then(|| value.to_owned());
            let needs_path = key == "kv_tiers.disk_bytes";
            let environment =
                |name: &str| given(name).or_else(|| path(name).filter(|_| needs_path));
            let config = Config::load(None, environment).unwrap();
            assert_ne!(config, Config::default(), "{variable} changes {key}");
        }
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any.yaml");
        std::fs::write(&path, "server: {port: 1, host: a}\n").unwrap();
        let environment = |name: &str| (name == "PELTON_PORT").then(|| "2".to_owned());
        let config = Config::load(Some(&path), environment).unwrap();
        assert_eq!((config.server.port, config.server.host.as_str()), (2, "a"));
    }

    #[test]
    fn the_users_file_is_found_in_the_configuration_folder() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join(".config").join("pelton");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("pelton.yaml"), "device: reference\n").unwrap();
        let root = folder.path().to_str().unwrap().to_owned();
        let environment = |name: &str| (name == "HOME").then(|| root.clone());
        assert_eq!(Config::load(None, environment).unwrap().device, "reference");
        assert_eq!(Config::load(None, |_| None).unwrap(), Config::default());
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for (variable, value) in [
            ("PELTON_PORT", "65536"),
            ("PELTON_PORT", "http"),
            ("PELTON_THREADS", "-1"),
            ("PELTON_THREADS", "0"),
            ("PELTON_SEQUENCES_MAX", "0"),
            ("PELTON_KV_CACHE_MB", "99999999999999999999"),
            ("PELTON_ALLOW_PUBLIC", "maybe"),
            ("PELTON_KV_TIERS_RAM_BYTES", "1 GB"),
        ] {
            let environment = |name: &str| (name == variable).then(|| value.to_owned());
            let error = Config::load(None, environment).unwrap_err().to_string();
            let key = VARIABLES.iter().find(|(name, _)| *name == variable).unwrap().1;
            assert!(error.contains(variable) || error.contains(key), "{variable}={value}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Some("/nowhere/pelton.yaml".as_ref()), |_| None).unwrap_err();
        assert!(error.to_string().contains("/nowhere/pelton.yaml"), "{error}");
    }
}
