//! Who may ask, for which models, and how much?

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// Who may ask. With a key configured, every request but those for health needs one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Keys that may ask; `pelton keys add NAME` makes one. No key anywhere: whoever can reach the
    /// server may ask.
    #[schemars(extend("x-reload" = true))]
    pub keys: Vec<KeyConfig>,
    /// A YAML file with a list of further keys, read anew at SIGHUP; absent: none.
    #[schemars(extend("x-reload" = true))]
    pub keys_file: Option<String>,
    /// Show `/metrics` without a key.
    #[schemars(extend("x-reload" = true))]
    pub open_metrics: bool,
}

/// One key: who holds it, and what that one may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// For logs and the audit log: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// SHA-256 of the key in hex; the key itself is nowhere.
    pub sha256: KeyDigest,
    /// Keys of one tenant share caches and take turns as one; absent: the name.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Models that it may use; none: all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Requests a minute; absent: any number.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_minute: Option<u32>,
    /// Tokens read and written a minute; absent: any number.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub tokens_per_minute: Option<u64>,
    /// Tokens read and written within 24 hours; absent: any number.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub tokens_per_day: Option<u64>,
    /// Requests that may run or wait at once; absent: any number.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65_536))]
    pub concurrent_max: Option<u32>,
    /// How urgent its requests are; one may ask for less and not for more.
    #[serde(default)]
    pub priority: KeyPriority,
    /// May load and unload models, from any machine.
    #[serde(default)]
    pub admin: bool,
}

/// `low`, `normal` or `high`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyPriority {
    Low,
    #[default]
    Normal,
    High,
}

/// SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct KeyDigest(pub [u8; 32]);

/// Longer names would fill logs.
const NAME_BYTES_MAX: usize = 64;

impl AccessConfig {
    /// What is wrong with the list of keys, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        for (index, key) in self.keys.iter().enumerate() {
            let name = &key.name;
            if let Some(problem) = key.problem() {
                return Some(problem);
            }
            if self.keys[..index].iter().any(|other| other.name == *name) {
                return Some(format!("has two keys of the name `{name}`; they may share a tenant"));
            }
            if self.keys[..index].iter().any(|other| other.sha256 == key.sha256) {
                return Some(format!("has the key of `{name}` twice"));
            }
        }
        None
    }
}

impl KeyConfig {
    /// # Errors
    /// [`ConfigError`] where its names are none.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |problem| ConfigError::Value { key: "access.keys".to_owned(), problem };
        self.problem().map_or(Ok(()), |problem| Err(wrong(problem)))
    }

    fn problem(&self) -> Option<String> {
        let text = std::iter::once(&self.name).chain(&self.tenant).find(|text| !is_name(text))?;
        Some(format!(
            "has the name {text:?}: 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"
        ))
    }
}

fn is_name(text: &str) -> bool {
    let is_sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_sane)
}

impl TryFrom<String> for KeyDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "sha256 must be 64 hex digits, as `pelton keys add` prints them";
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = &text[2 * index..2 * index + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|_| WRONG)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KeyDigest({self})")
    }
}

impl From<KeyDigest> for String {
    fn from(digest: KeyDigest) -> Self {
        digest.to_string()
    }
}
