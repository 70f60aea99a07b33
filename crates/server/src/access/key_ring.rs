//! Which keys are there, and whose is the one that was sent?
//!
//! A key is looked up by its SHA-256, which is compared with that of every key there is, in a time
//! that does not depend on where they differ. Keys are 256 random bits, so that one digest, without
//! salt or stretching, is as hard to invert as the key is to guess.

use std::sync::Arc;
use std::time::Instant;

use config::{AccessConfig, KeyConfig, KeyPriority};
use messages::Priority;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::allowance::Allowance;

/// A key that may ask.
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) tenant: String,
    pub(crate) priority: Priority,
    pub(crate) is_admin: bool,
    pub(crate) allowance: Arc<Allowance>,
    digest: [u8; 32],
    /// Empty: all.
    models: Vec<String>,
}

impl Key {
    fn new(config: &KeyConfig, allowance: Arc<Allowance>) -> Arc<Self> {
        Arc::new(Self {
            name: config.name.clone(),
            tenant: config.tenant.clone().unwrap_or_else(|| config.name.clone()),
            priority: match config.priority {
                KeyPriority::Low => Priority::Low,
                KeyPriority::Normal => Priority::Normal,
                KeyPriority::High => Priority::High,
            },
            is_admin: config.admin,
            allowance,
            digest: config.sha256.0,
            models: config.models.clone(),
        })
    }

    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|allowed| allowed == model)
    }
}

/// All keys.
#[derive(Default)]
pub(crate) struct KeyRing {
    keys: Vec<Arc<Key>>,
}

impl KeyRing {
    /// Keys whose names were there `before` have used what they had used.
    pub(crate) fn new(access: &AccessConfig, before: &Self) -> Self {
        let now = Instant::now();
        let key = |config: &KeyConfig| {
            let held = before.keys.iter().find(|key| key.name == config.name);
            let allowance = match held {
                Some(key) => {
                    key.allowance.take_up(config, now);
                    Arc::clone(&key.allowance)
                }
                None => Arc::new(Allowance::new(config, now)),
            };
            Key::new(config, allowance)
        };
        Self { keys: access.keys.iter().map(key).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn find(&self, presented: &str) -> Option<Arc<Key>> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let mut found = u32::MAX;
        for (index, key) in self.keys.iter().enumerate() {
            let same = key.digest.ct_eq(&digest);
            found.conditional_assign(&(index as u32), same);
        }
        self.keys.get(found as usize).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use config::KeyDigest;

    use super::*;

    fn ring(names: &[&str], before: &KeyRing) -> KeyRing {
        let key = |name: &&str| KeyConfig {
            requests_per_minute: Some(1),
            ..serde_json::from_value(serde_json::json!({
                "name": name,
                "sha256": KeyDigest(Sha256::digest(format!("key of {name}")).into()),
            }))
            .unwrap()
        };
        let keys = names.iter().map(key).collect();
        KeyRing::new(&AccessConfig { keys, ..AccessConfig::default() }, before)
    }

    #[test]
    fn a_key_is_found_wherever_it_stands() {
        let ring = ring(&["a", "b", "c"], &KeyRing::default());
        for name in ["a", "b", "c"] {
            assert_eq!(ring.find(&format!("key of {name}")).unwrap().name, name);
        }
        for stranger in ["", "key of d", "key of a ", "Key of a"] {
            assert!(ring.find(stranger).is_none(), "{stranger}");
        }
    }

    #[test]
    fn a_key_that_stays_has_used_what_it_had() {
        let first = ring(&["a", "b"], &KeyRing::default());
        let now = Instant::now();
        drop(first.find("key of a").unwrap().allowance.enter(now));
        let second = ring(&["a"], &first);
        assert!(second.find("key of a").unwrap().allowance.enter(now).is_err());
        assert!(second.find("key of b").is_none());
    }
}
