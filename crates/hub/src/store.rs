//! Which models are on this machine, and how do they come and go?
//!
//! Layout below the root: `models/FILE.gguf` for the catalogue and for files put there by hand,
//! `models/ORG/NAME/FILE.gguf` for the hub's repositories.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::asked_name::{AskedName, RepoName, check_component, is_gguf, near_names};
use crate::catalogue::{CatalogueEntry, Source, catalogue};
use crate::http::HttpClient;
use crate::hugging_face::{
    RepoFile, all_parts, cached_file, cached_files, gguf_files, list_files, pick,
};
use crate::partial_file::{Expected, with_suffix};
use crate::progress::Progress;
use crate::pull::{Order, Place, bring};
use crate::{HubError, Settings, SourceFailure};

/// The models on this machine.
#[derive(Clone, Debug)]
pub struct Store {
    settings: Settings,
}

/// A name's file. For a split model, its first part; the others lie beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub path: PathBuf,
    /// What to call it from now on; a file's stem for a path.
    pub name: String,
    /// Of this file alone.
    pub bytes: u64,
    pub origin: Origin,
}

/// Where a resolved file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Store,
    /// The cache that Hugging Face's own tools keep; Pelton reads it and leaves it alone.
    HubCache,
    /// A path the person gave.
    Path,
}

/// What [`Store::pull`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub resolved: Resolved,
    /// Where it was brought from; `None` when it was here already.
    pub brought_from: Option<String>,
}

/// One model of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalModel {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    pub modified: Option<SystemTime>,
}

impl Store {
    /// The store of this user: `PELTON_HOME`, else `pelton` in the cache folder.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when the environment names no folder.
    pub fn open_default() -> Result<Self, HubError> {
        Ok(Self::with_settings(Settings::from_env()?))
    }

    /// A store in `root`; everything else as the environment says.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when the environment names no folder at all.
    pub fn open(root: &Path) -> Result<Self, HubError> {
        let root = root.to_owned();
        Ok(Self::with_settings(Settings { root, ..Settings::from_env()? }))
    }

    pub fn with_settings(settings: Settings) -> Self {
        Self { settings }
    }

    /// The folder that holds the models.
    pub fn models_folder(&self) -> PathBuf {
        self.settings.root.join("models")
    }

    /// Finds the file a name means, without the network.
    ///
    /// # Errors
    /// Says which names there are when this one is unknown, and how to bring a model that is
    /// known and not here.
    pub fn resolve(&self, asked: &str) -> Result<Resolved, HubError> {
        if let Some(resolved) = existing_path(asked)? {
            return Ok(resolved);
        }
        let not_pulled = || HubError::NotPulled { name: asked.to_owned() };
        match AskedName::parse(asked)? {
            AskedName::Path(path) if path.is_dir() => Err(HubError::NotAModelFolder { path }),
            AskedName::Path(path) => Err(HubError::NoSuchFile { path }),
            AskedName::Catalogue(entry) => self.find_entry(entry).ok_or_else(not_pulled),
            AskedName::HubFile { repo, file } => {
                self.find_file(&repo, &file).ok_or_else(not_pulled)
            }
            AskedName::HubRepo { repo, quant } => {
                self.find_repo(&repo, quant.as_deref()).ok_or_else(not_pulled)
            }
            AskedName::Word(word) => self.find_word(&word),
        }
    }

    /// Brings the model a name means, unless it is here already.
    ///
    /// # Errors
    /// As [`Store::resolve`]; and what every source said when none could give the file.
    pub fn pull(&self, asked: &str, progress: &mut dyn Progress) -> Result<Pulled, HubError> {
        match self.resolve(asked) {
            Ok(resolved) => return Ok(Pulled { resolved, brought_from: None }),
            Err(HubError::NotPulled { .. }) => {}
            Err(error) => return Err(error),
        }
        if self.settings.offline {
            return Err(HubError::Offline { name: asked.to_owned() });
        }
        let brought_from = match AskedName::parse(asked)? {
            AskedName::Catalogue(entry) => {
                let expected = Expected { bytes: Some(entry.bytes), sha256: Some(entry.sha256) };
                let places = entry.sources.iter().map(|source| Place::from(*source)).collect();
                let final_path = self.models_folder().join(entry.file_name);
                let order = Order { name: entry.name, final_path, expected, places };
                bring(&self.settings, &order, progress)?
            }
            AskedName::HubFile { repo, file } => {
                let unknown = |path| RepoFile { path, expected: Expected::default() };
                let parts: Vec<RepoFile> = all_parts(&file).into_iter().map(unknown).collect();
                self.bring_parts(&repo, &parts, progress)?
            }
            AskedName::HubRepo { repo, quant } => {
                let parts = self.choose(&repo, quant.as_deref())?;
                self.bring_parts(&repo, &parts, progress)?
            }
            AskedName::Path(_) | AskedName::Word(_) => None,
        };
        Ok(Pulled { resolved: self.resolve(asked)?, brought_from })
    }

    /// Every model of the store, by name. A split model is one line per part.
    ///
    /// # Errors
    /// When the folder is there and cannot be read.
    pub fn list(&self) -> Result<Vec<LocalModel>, HubError> {
        let folder = self.models_folder();
        match fs::read_dir(&folder) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(HubError::io("read", &folder)(error)),
        }
        let mut files: Vec<(String, PathBuf)> = Vec::new();
        for (name, path) in folders(&folder) {
            for (inner, inner_path) in folders(&path) {
                let found = gguf_files(&inner_path).into_iter();
                files.extend(found.map(|(file, at)| (format!("{name}/{inner}/{file}"), at)));
            }
        }
        let direct = gguf_files(&folder).into_iter().filter(|(name, _)| !name.contains('/'));
        files.extend(direct.map(|(file, path)| (short_name(&file), path)));
        files.sort();
        let model = |(name, path): (String, PathBuf)| {
            let data = fs::metadata(&path).ok();
            let bytes = data.as_ref().map_or(0, fs::Metadata::len);
            LocalModel { name, bytes, modified: data.and_then(|data| data.modified().ok()), path }
        };
        Ok(files.into_iter().map(model).collect())
    }

    /// Deletes a model of the store, every part of it; says how many bytes that freed.
    ///
    /// # Errors
    /// As [`Store::resolve`]; a file outside the store is not the store's to delete.
    pub fn remove(&self, asked: &str) -> Result<u64, HubError> {
        let resolved = self.resolve(asked)?;
        if resolved.origin != Origin::Store {
            return Err(HubError::NotOurs { path: resolved.path });
        }
        let file_name = resolved.path.file_name().unwrap_or_default().to_string_lossy();
        let mut freed_bytes = 0;
        for part in all_parts(&file_name) {
            let path = resolved.path.with_file_name(&part);
            if let Ok(data) = fs::metadata(&path) {
                fs::remove_file(&path).map_err(HubError::io("delete", &path))?;
                freed_bytes += data.len();
            }
            // What is left of a pull, and what the engine made of the weights (`repack_cache`).
            for suffix in [".partial", ".packed", ".packed.partial"] {
                let _ = fs::remove_file(with_suffix(&path, suffix));
            }
        }
        Ok(freed_bytes)
    }

    fn find_entry(&self, entry: &CatalogueEntry) -> Option<Resolved> {
        let path = self.models_folder().join(entry.file_name);
        if path.is_file() {
            return resolved(path, entry.name, Origin::Store);
        }
        let cache = self.settings.hub_cache.as_ref()?;
        entry.sources.iter().find_map(|source| match source {
            Source::HuggingFace { repo, file, .. } => cached_file(cache, repo, file)
                .and_then(|path| resolved(path, entry.name, Origin::HubCache))
                // Another revision's file of the same name is not the one the catalogue means.
                .filter(|found| found.bytes == entry.bytes),
            Source::PythonPackage { .. } => None,
        })
    }

    fn find_file(&self, repo: &RepoName, file: &str) -> Option<Resolved> {
        let name = format!("{repo}/{file}");
        let path = self.repo_folder(repo).join(file);
        if path.is_file() {
            return resolved(path, &name, Origin::Store);
        }
        let cache = self.settings.hub_cache.as_ref()?;
        let path = cached_file(cache, &repo.to_string(), file)?;
        resolved(path, &name, Origin::HubCache)
    }

    fn find_repo(&self, repo: &RepoName, quant: Option<&str>) -> Option<Resolved> {
        let cached = || {
            let cache = self.settings.hub_cache.as_deref();
            cache.map(|cache| cached_files(cache, &repo.to_string())).unwrap_or_default()
        };
        let stored = (gguf_files(&self.repo_folder(repo)), Origin::Store);
        [stored, (cached(), Origin::HubCache)].into_iter().find_map(|(files, origin)| {
            let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
            let first = *pick(&names, quant).first()?;
            let (_, path) = files.iter().find(|(name, _)| name == first)?;
            resolved(path.clone(), &format!("{repo}/{first}"), origin)
        })
    }

    /// A file that was put into the store by hand, with or without its ending.
    fn find_word(&self, word: &str) -> Result<Resolved, HubError> {
        for file in [word.to_owned(), format!("{word}.gguf")] {
            let path = self.models_folder().join(&file);
            if is_gguf(&path) && path.is_file() {
                let found = resolved(path, &short_name(&file), Origin::Store);
                return found.ok_or_else(|| HubError::NotPulled { name: word.to_owned() });
            }
        }
        let local: Vec<String> =
            self.list().unwrap_or_default().into_iter().map(|model| model.name).collect();
        let mut known: Vec<&str> = catalogue().iter().map(|entry| entry.name).collect();
        known.extend(
            local
                .iter()
                .map(String::as_str)
                .filter(|name| !known.contains(name))
                .collect::<Vec<_>>(),
        );
        Err(HubError::UnknownName {
            asked: word.to_owned(),
            near: near_names(word, &local),
            known: known.join(", "),
        })
    }

    /// Asks the hub which files a repository has and picks the model's.
    fn choose(&self, repo: &RepoName, quant: Option<&str>) -> Result<Vec<RepoFile>, HubError> {
        let client = HttpClient::new(&self.settings);
        let files = list_files(&client, &self.settings.hub_endpoint, repo).map_err(|why| {
            let failure = SourceFailure { place: format!("hub {repo}"), why };
            HubError::EverySourceFailed { name: repo.to_string(), failures: vec![failure] }
        })?;
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let picked = pick(&names, quant);
        if picked.is_empty() {
            let none = "no .gguf file at all".to_owned();
            return Err(HubError::NoMatchingFile {
                repo: repo.to_string(),
                asked: quant.unwrap_or("a model").to_owned(),
                available: if names.is_empty() { none } else { names.join(", ") },
            });
        }
        Ok(files.iter().filter(|file| picked.contains(&file.path.as_str())).cloned().collect())
    }

    fn bring_parts(
        &self,
        repo: &RepoName,
        parts: &[RepoFile],
        progress: &mut dyn Progress,
    ) -> Result<Option<String>, HubError> {
        let repo_text = repo.to_string();
        let mut brought_from = None;
        for part in parts {
            // Names from the hub's listing are as foreign as names that a person types.
            for component in part.path.split('/') {
                let invalid = |why| HubError::InvalidName { asked: part.path.clone(), why };
                check_component(component).map_err(invalid)?;
            }
            let order = Order {
                name: &repo_text,
                final_path: self.repo_folder(repo).join(&part.path),
                expected: part.expected,
                places: vec![Place::Hub { repo: &repo_text, revision: "main", file: &part.path }],
            };
            brought_from = bring(&self.settings, &order, progress)?.or(brought_from);
        }
        Ok(brought_from)
    }

    fn repo_folder(&self, repo: &RepoName) -> PathBuf {
        self.models_folder().join(&repo.organization).join(&repo.name)
    }
}

/// A path to a file wins over every name: what lies here is what the person sees.
fn existing_path(asked: &str) -> Result<Option<Resolved>, HubError> {
    let path = Path::new(asked);
    if let Some(folder) = model_folder(path) {
        return Ok(Some(folder));
    }
    if !path.is_file() {
        return Ok(None);
    }
    if !is_gguf(path) {
        return Err(HubError::NotGguf { path: path.to_owned() });
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(resolved(path.to_owned(), &stem, Origin::Path))
}

/// A folder of a model as it is published: settings, and weights in safetensors files.
fn model_folder(path: &Path) -> Option<Resolved> {
    if !path.join("config.json").is_file() {
        return None;
    }
    let is_weights = |path: &Path| path.extension().is_some_and(|end| end == "safetensors");
    let files = fs::read_dir(path).ok()?.flatten().filter(|entry| is_weights(&entry.path()));
    let lengths: Vec<u64> =
        files.map(|entry| fs::metadata(entry.path()).map_or(0, |m| m.len())).collect();
    if lengths.is_empty() {
        return None;
    }
    // A path may end in `.` or `..`, which is no name.
    let whole = path.canonicalize().ok()?;
    let name = whole.file_name()?.to_string_lossy().into_owned();
    let bytes = lengths.iter().sum();
    Some(Resolved { path: path.to_owned(), name, bytes, origin: Origin::Path })
}

fn resolved(path: PathBuf, name: &str, origin: Origin) -> Option<Resolved> {
    let bytes = fs::metadata(&path).ok()?.len();
    Some(Resolved { path, name: name.to_owned(), bytes, origin })
}

/// The catalogue's name of a file, or its stem.
fn short_name(file: &str) -> String {
    let listed = catalogue().iter().find(|entry| entry.file_name == file);
    listed.map_or_else(|| file.trim_end_matches(".gguf").to_owned(), |entry| entry.name.to_owned())
}

fn folders(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named =
        entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    named.filter(|(name, path)| !name.starts_with('.') && path.is_dir()).collect()
}
