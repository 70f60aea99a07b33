//! What can go wrong between a name and a file, and what should the person do?

use std::path::{Path, PathBuf};

/// Every text says whose fault, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "no model is called `{asked}`{near}; known names: {known}; also `org/name`, \
             `org/name/file.gguf` of the hub, or the path of a .gguf file or \
             of a folder with config.json and .safetensors files"
    )]
    UnknownName { asked: String, near: String, known: String },
    #[error("`{asked}` is not a usable model name: {why}")]
    InvalidName { asked: String, why: &'static str },
    #[error("there is no file `{}`: give the path of a .gguf file, or of a folder with \
             config.json and .safetensors files", path.display())]
    NoSuchFile { path: PathBuf },
    #[error("the folder `{}` holds no model: a model's folder has config.json and .safetensors \
             files; a .gguf file is named itself", path.display())]
    NotAModelFolder { path: PathBuf },
    #[error("`{}` is not a .gguf file", path.display())]
    NotGguf { path: PathBuf },
    #[error("model `{name}` is not on this machine yet; `pelton pull {name}` brings it")]
    NotPulled { name: String },
    #[error("model `{name}` is not on this machine and PELTON_OFFLINE forbids bringing it")]
    Offline { name: String },
    #[error("{repo} has no file for `{asked}`; it has: {available}")]
    NoMatchingFile { repo: String, asked: String, available: String },
    #[error("no source could give `{name}`: {}", list(failures))]
    EverySourceFailed { name: String, failures: Vec<SourceFailure> },
    #[error("the disk is full while writing `{}`; free some space and pull again, what has arrived \
             is kept", path.display())]
    DiskFull { path: PathBuf },
    #[error("`{}` lies outside the store; delete it yourself if you mean it", path.display())]
    NotOurs { path: PathBuf },
    #[error("no folder for models: neither PELTON_HOME, XDG_CACHE_HOME nor HOME is set")]
    NoHome,
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}

/// Why one source did not give the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct SourceFailure {
    pub place: String,
    pub why: String,
}

fn list(failures: &[SourceFailure]) -> String {
    failures.iter().map(SourceFailure::to_string).collect::<Vec<_>>().join("; ")
}

impl HubError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.clone() }
            }
            _ => Self::Io { doing, path: path.clone(), source },
        }
    }
}

/// One source's outcome: try the next one, or give up because this machine is at fault.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The next source may do better.
    Source(String),
    /// No source can help: disk, permissions.
    Local(HubError),
}

impl From<HubError> for FetchError {
    fn from(error: HubError) -> Self {
        Self::Local(error)
    }
}
