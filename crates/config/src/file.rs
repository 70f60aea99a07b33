//! What does the configuration file say?

use std::fmt::Display;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Config, ConfigError, nearest_name};

/// A file with every key and a paragraph of comment on each has under 16 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `pelton.yaml` in the user's configuration folder, whether it is there or not.
pub(crate) fn default_path(environment: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .or_else(|| set("APPDATA"))?;
    Some(folder.join("pelton").join("pelton.yaml"))
}

pub(crate) fn read(path: &Path) -> Result<Config, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Config::default());
    }
    serde_saphyr::from_str(text).map_err(|error| explain(path, &error))
}

fn explain(path: &Path, error: &serde_saphyr::Error) -> ConfigError {
    if let serde_saphyr::Error::SerdeUnknownField { field, expected, location } =
        error.without_snippet()
    {
        return ConfigError::UnknownKey {
            path: path.to_owned(),
            line: location.line(),
            column: location.column(),
            key: field.clone(),
            hint: hint(field, expected),
        };
    }
    ConfigError::Syntax { path: path.to_owned(), problem: error.to_string() }
}

fn hint(key: &str, expected: &[impl AsRef<str> + Display]) -> String {
    if let Some(name) = nearest_name(key, expected.iter().map(AsRef::as_ref)) {
        return format!(", did you mean `{name}`?");
    }
    let names: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
    format!(", the keys here are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::RepackCache;

    fn refusal(text: &str) -> String {
        parse(Path::new("pelton.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn every_key_can_be_set() {
        let text = "
server:
  host: localhost
  port: 9000
  allow_public: true
  allowed_hosts: [models.example]
  allowed_origins: ['https://example.com']
  request_body_bytes_max: 2000000
  request_head_bytes_max: 16384
  connections_max: 10
  keep_alive_seconds: 5
  drain_seconds: 1
model: {name: SmolLM2-135M-Instruct, context_tokens: 4096, repack_cache: /tmp/kept}
device: reference
threads: 2
isa: avx2
speculation: off
draft_model: smaller
kv_dtype: int8
limits: {sequences_max: 3, waiting_max: 4, step_tokens_max: 64, kv_cache_mb: 512, \
memory_budget_mb: 4096}
breaker: {faults_max: 2, window_seconds: 3, pause_seconds: 4}
models:
  - model: other.gguf
  - {name: b, model: b.gguf, context_tokens: 1, kv_cache_mb: 2, pinned: true, preload: true, \
idle_minutes: 3}
sharing:
  enabled: false
  readers_max: 2
  answers_max: 3
  tokens_max: 4
  memory_mb: 5
  ttl_seconds: 6
  folder: answers
";
        let config = parse(Path::new("pelton.yaml"), text).unwrap();
        assert_eq!(config.server.host, "localhost");
        assert_eq!(config.server.port, 9000);
        assert_eq!(config.server.allowed_hosts, ["models.example"]);
        assert_eq!(config.model.context_tokens, Some(4096));
        assert_eq!(config.model.repack_cache, RepackCache::At("/tmp/kept".into()));
        assert_eq!(config.threads, Some(2));
        assert_eq!(config.draft_model.as_deref(), Some("smaller"));
        assert_eq!(config.speculation, crate::SpeculationMode::Off);
        assert_eq!(config.limits.kv_cache_mb, Some(512));
        let sharing = &config.sharing;
        assert_eq!((sharing.enabled, sharing.readers_max, sharing.answers_max), (false, 2, 3));
        assert_eq!((sharing.tokens_max, sharing.memory_mb, sharing.ttl_seconds), (4, 5, 6));
        assert_eq!(sharing.folder.as_deref(), Some("answers"));
        assert_eq!(config.limits.memory_budget_mb, Some(4096));
        assert_eq!(config.breaker.window_seconds, 3);
        assert_eq!(
            (config.models[0].model.as_str(), config.models[0].pinned),
            ("other.gguf", false)
        );
        let second = &config.models[1];
        assert_eq!((second.name.as_deref(), second.idle_minutes), (Some("b"), Some(3)));
        assert!(second.pinned && second.preload);
        // A forgotten key would keep its default.
        let default = Config::default();
        assert_ne!(config.server.drain_seconds, default.server.drain_seconds);
        assert_ne!(config.limits.step_tokens_max, default.limits.step_tokens_max);
    }

    #[test]
    fn a_repack_cache_is_a_truth_or_a_path() {
        let of = |value: &str| {
            let config = parse(Path::new("x"), &format!("model: {{repack_cache: {value}}}\n"));
            config.unwrap().model.repack_cache.path(Path::new("/models/a.gguf"))
        };
        assert_eq!(of("false"), None);
        assert_eq!(of("true"), Some(PathBuf::from("/models/a.gguf.packed")));
        assert_eq!(of("/var/kept"), Some(PathBuf::from("/var/kept")));
        assert_eq!(RepackCache::parse("true"), RepackCache::Beside(true));
        let problem = refusal("model: {repack_cache: [1]}\n");
        assert!(problem.contains("the path of a file"), "{problem}");
    }

    #[test]
    fn an_absent_key_keeps_its_default() {
        let config = parse(Path::new("x"), "server: {port: 1}\n").unwrap();
        let default = Config::default();
        assert_eq!(config.server.port, 1);
        assert_eq!(config.server.host, default.server.host);
        assert_eq!(config.limits, default.limits);
        assert_eq!(parse(Path::new("x"), "# nothing\n\n").unwrap(), default);
        assert_eq!(parse(Path::new("x"), "").unwrap(), default);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_neighbour() {
        assert_eq!(
            refusal("server:\n  prot: 1\n"),
            "pelton.yaml:2:3: unknown key `prot`, did you mean `port`?"
        );
        assert_eq!(
            refusal("modle: x\n"),
            "pelton.yaml:1:1: unknown key `modle`, did you mean `model`?"
        );
        let text = refusal("model:\n  zzzzzz: 1\n");
        assert!(
            text.ends_with("the keys here are `name`, `context_tokens`, `repack_cache`"),
            "{text}"
        );
    }

    #[test]
    fn wrong_values_name_the_line() {
        for text in ["server:\n  port: 65536\n", "server:\n  port: -1\n", "server:\n  port: [1]\n"]
        {
            let problem = refusal(text);
            assert!(problem.contains('2'), "{text}: {problem}");
        }
        let problem = refusal("server: {port: 1}\nserver: {port: 2}\n");
        assert!(problem.contains("duplicate"), "{problem}");
        let problem = refusal("server: [\n");
        assert!(problem.starts_with("pelton.yaml: "), "{problem}");
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "device: &a0 x\n".to_owned();
        text.push_str("model: &a1 [*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0]\n");
        for level in 2..12 {
            let item = format!("*a{}", level - 1);
            let items = [item.as_str(); 10].join(",");
            text.push_str(&format!("k{level}: &a{level} [{items}]\n"));
        }
        assert!(parse(Path::new("x"), &text).is_err());
    }
}
