//! Where are the models kept and which hub is asked? Read from the environment once, then data.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::HubError;

/// Everything the environment decides.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// Holds `models/`.
    pub root: PathBuf,
    /// No network, ever.
    pub offline: bool,
    /// `https://huggingface.co` or what `HF_ENDPOINT` says.
    pub hub_endpoint: String,
    /// Sent to `hub_endpoint` only.
    pub hub_token: Option<String>,
    /// The Hugging Face cache of other tools on this machine; read, never written.
    pub hub_cache: Option<PathBuf>,
    /// Commands that may be pip, in the order they are tried.
    pub pip_commands: Vec<Vec<String>>,
}

impl Settings {
    /// Reads `PELTON_HOME`, `PELTON_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`,
    /// `HF_HUB_OFFLINE`, `XDG_CACHE_HOME` and `HOME`.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when no folder for models can be named.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let home = set("HOME").map(PathBuf::from);
        // The XDG specification says that a relative path there is to be ignored.
        let cache = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| home.map(|home| home.join(".cache")));
        let root = set("PELTON_HOME")
            .map(PathBuf::from)
            .or_else(|| cache.as_ref().map(|cache| cache.join("pelton")))
            .ok_or(HubError::NoHome)?;
        let hub_cache = set("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| set("HF_HOME").map(|home| PathBuf::from(home).join("hub")))
            .or_else(|| cache.map(|cache| cache.join("huggingface").join("hub")));
        let pip = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Ok(Self {
            root,
            offline: truthy(text("PELTON_OFFLINE")) || truthy(text("HF_HUB_OFFLINE")),
            hub_endpoint: text("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned())
                .trim_end_matches('/')
                .to_owned(),
            hub_token: text("HF_TOKEN"),
            hub_cache,
            pip_commands: vec![pip(&["python3", "-m", "pip"]), pip(&["pip3"]), pip(&["pip"])],
        })
    }
}

fn truthy(value: Option<String>) -> bool {
    value.is_some_and(|value| {
        !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")
    })
}

impl std::fmt::Debug for Settings {
    /// Everything but the token, which must not reach a log.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("root", &self.root)
            .field("offline", &self.offline)
            .field("hub_endpoint", &self.hub_endpoint)
            .field("hub_token", &self.hub_token.as_ref().map(|_| "set"))
            .field("hub_cache", &self.hub_cache)
            .field("pip_commands", &self.pip_commands)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings, HubError> {
        let find = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|pair| pair.1);
        Settings::from_lookup(|name| find(name).map(OsString::from))
    }

    #[test]
    fn the_environment_decides_the_folders() {
        let root = |pairs: &[(&str, &str)]| settings(pairs).unwrap().root;
        assert_eq!(root(&[("HOME", "/h")]), PathBuf::from("/h/.cache/pelton"));
        assert_eq!(root(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/pelton"));
        assert_eq!(
            root(&[("HOME", "/h"), ("XDG_CACHE_HOME", "rel")]),
            PathBuf::from("/h/.cache/pelton")
        );
        assert_eq!(root(&[("PELTON_HOME", "/p")]), PathBuf::from("/p"));
        assert!(matches!(settings(&[]), Err(HubError::NoHome)));
    }

    #[test]
    fn offline_is_what_people_mean_by_it() {
        let offline = |value| settings(&[("HOME", "/h"), ("PELTON_OFFLINE", value)]).unwrap();
        assert!(offline("1").offline && offline("true").offline);
        assert!(!offline("0").offline && !offline("").offline);
    }

    #[test]
    fn a_token_is_not_shown() {
        let shown = format!("{:?}", settings(&[("HOME", "/h"), ("HF_TOKEN", "secret")]).unwrap());
        assert!(!shown.contains("secret") && shown.contains("set"));
    }
}
