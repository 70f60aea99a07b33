//! How is a key made?

use std::fmt;

use config::KeyDigest;
use sha2::{Digest, Sha256};

/// A key that nobody has seen yet.
pub struct NewKey(String);

/// So that a key is known for one when it is found where it does not belong.
const PREFIX: &str = "sk-pelton-";

impl NewKey {
    /// 256 random bits of the system.
    ///
    /// # Errors
    /// When the system has no source of them.
    pub fn draw() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
        Ok(Self(format!("{PREFIX}{}", KeyDigest(bytes))))
    }

    /// What the configuration keeps.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.0.as_bytes()).into())
    }
}

/// The key itself: to be shown once.
impl fmt::Display for NewKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
