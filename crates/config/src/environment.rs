//! Which variables override the file?
//!
//! Every key has one: `PELTON_`, then its path in capitals with two underscores for each dot, as in
//! `PELTON_SERVER__PORT`. Some have a short name besides. What Kubernetes says of a service whose
//! name begins with `pelton` looks like ours, and is not.

use crate::keys::Key;
use crate::{ConfigError, nearest_name};

/// Short names, and the key each stands for.
pub(crate) const SHORT_NAMES: &[(&str, &str)] = &[
    ("PELTON_ALLOW_PUBLIC", "server.allow_public"),
    ("PELTON_CONTEXT_TOKENS", "model.context_tokens"),
    ("PELTON_HOST", "server.host"),
    ("PELTON_KV_CACHE_MB", "limits.kv_cache_mb"),
    ("PELTON_KV_TIERS_DISK_BYTES", "kv_tiers.disk_bytes"),
    ("PELTON_KV_TIERS_DISK_PATH", "kv_tiers.disk_path"),
    ("PELTON_KV_TIERS_RAM_BYTES", "kv_tiers.ram_bytes"),
    ("PELTON_MEMORY_BUDGET_MB", "limits.memory_budget_mb"),
    ("PELTON_MODEL", "model.name"),
    ("PELTON_PORT", "server.port"),
    ("PELTON_REPACK_CACHE", "model.repack_cache"),
    ("PELTON_SEQUENCES_MAX", "limits.sequences_max"),
    ("PELTON_SHARING", "sharing.enabled"),
    ("PELTON_SHARING_FOLDER", "sharing.folder"),
    ("PELTON_STEP_TOKENS_MAX", "limits.step_tokens_max"),
    ("PELTON_WAITING_MAX", "limits.waiting_max"),
];

/// Variables that are no keys, and what they mean.
pub(crate) const OTHER_NAMES: &[(&str, &str)] = &[
    ("PELTON_API_KEY", "The key that `pelton ps` and `pelton top` show to a server."),
    ("PELTON_CONFIG", "The configuration file, where no `--config` names one."),
    ("PELTON_HOME", "The folder of pulled models."),
    ("PELTON_OFFLINE", "`1`: never use the network."),
    ("PELTON_PROGRAM", "For `pelton.Engine` of Python: where this program is."),
    ("PELTON_EMBED_LIBRARY", "For `pelton.Engine` of Python: where its library is."),
    ("PELTON_NVCC", "For builds: the `nvcc` that compiles CUDA kernels ahead."),
    ("PELTON_CUDA_TARGETS", "For builds: which targets it compiles for, such as `75,80,90`."),
    ("PELTON_TEST_MODEL", "The model file of Pelton's own tests."),
    ("PELTON_TEST_TEMPLATES", "A folder of published chat templates, for Pelton's own tests."),
    ("PELTON_BROWSER", "The browser of Pelton's own tests."),
];

/// The variable of a key, by the rule.
pub(crate) fn variable(path: &str) -> String {
    format!("PELTON_{}", path.replace('.', "__").to_ascii_uppercase())
}

/// Another name of the same variable.
pub(crate) fn short_name(path: &str) -> Option<&'static str> {
    SHORT_NAMES.iter().find(|(_, key)| *key == path).map(|(name, _)| *name)
}

/// The keys that the environment sets, with the variable and its text; an empty one counts as not
/// set.
///
/// # Errors
/// [`ConfigError`] for a variable that looks like one of Pelton's and is none, and for two that
/// contradict each other.
pub(crate) fn given<'a>(
    environment: &'a [(String, String)],
    keys: &'a [Key],
) -> Result<Vec<(&'a Key, &'a str, &'a str)>, ConfigError> {
    let mut found: Vec<(&Key, &str, &str)> = Vec::new();
    for (name, value) in environment {
        let is_other = OTHER_NAMES.iter().any(|(other, _)| other == name);
        let is_ours = name.starts_with("PELTON_") && !is_other && !value.is_empty();
        if !is_ours || is_of_service(name, environment) {
            continue;
        }
        let short = SHORT_NAMES.iter().find(|(short, _)| short == name).map(|(_, path)| *path);
        let means = |key: &&Key| short == Some(&key.path) || variable(&key.path) == *name;
        let Some(key) = keys.iter().find(means) else {
            return Err(ConfigError::UnknownVariable {
                variable: name.clone(),
                hint: hint(name, keys),
            });
        };
        if let Some((_, other, before)) = found.iter().find(|(known, ..)| known.path == key.path)
            && before != value
        {
            let (one, other, key) = ((*other).to_owned(), name.clone(), key.path.clone());
            return Err(ConfigError::TwoVariables { one, other, key });
        }
        found.push((key, name, value));
    }
    Ok(found)
}

/// Whether Kubernetes made this variable for a service: each has `NAME_SERVICE_HOST`, and a
/// `NAME_PORT` such as `tcp://10.0.0.1:80`, which no setting of ours can be.
///
/// Source: "Accessing the Service" in the documentation of Kubernetes, as Docker's links.
fn is_of_service(name: &str, environment: &[(String, String)]) -> bool {
    let has = |wanted: String, fits: &dyn Fn(&str) -> bool| {
        environment.iter().any(|(name, value)| *name == wanted && fits(value))
    };
    let is_url = |value: &str| {
        ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
    };
    let mut services = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].into_iter().flat_map(|part| {
        let ends = name.match_indices(part);
        ends.map(move |(at, _)| (&name[..at], &name[at + part.len()..]))
    });
    services.any(|(service, rest)| {
        (rest.is_empty() || rest.starts_with('_'))
            && has(format!("{service}_SERVICE_HOST"), &|_| true)
            && has(format!("{service}_PORT"), &is_url)
    })
}

fn hint(name: &str, keys: &[Key]) -> String {
    let by_rule: Vec<String> = keys.iter().map(|key| variable(&key.path)).collect();
    let others = SHORT_NAMES.iter().chain(OTHER_NAMES).map(|(name, _)| *name);
    let known: Vec<&str> = by_rule.iter().map(String::as_str).chain(others).collect();
    // Without the part that all have in common, or every name would be near to every other.
    let tail = |name: &str| name.trim_start_matches("PELTON_").to_owned();
    let tails: Vec<String> = known.iter().map(|name| tail(name)).collect();
    let nearest = nearest_name(&tail(name), tails.iter().map(String::as_str));
    nearest.map_or(String::new(), |near| format!(", did you mean PELTON_{near}?"))
}
