//! Which models does a server offer? Those of the command line and the configuration, and all that
//! are in the local store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use config::{Config, FurtherModelConfig, PoolingConfig, RepackCache};
use engine::{
    CpuMoeLayers, EngineOptions, GpuLayers, ModelEntry, ModelStatus, Registry, RegistryOptions,
    SaveProgress,
};
use hub::{LocalModel, Store};

use crate::loading::Bar;
use crate::model_file;
use crate::settings::{self, ModelArguments, adapters, output};

/// A model as the command line writes it: `MODEL` or `NAME=MODEL`.
struct NamedModel {
    name: Option<String>,
    model: String,
}

impl NamedModel {
    fn parse(text: &str) -> Self {
        match text.split_once('=') {
            // A file may have the sign in its own name.
            Some((name, model)) if !Path::new(text).is_file() => {
                Self { name: Some(name.to_owned()), model: model.to_owned() }
            }
            _ => Self { name: None, model: text.to_owned() },
        }
    }
}

/// All models of a server.
pub(crate) struct ServedModels {
    pub(crate) registry: Arc<Registry>,
    /// Of the first model, from which the others take what is not their own.
    first: EngineOptions,
}

impl ServedModels {
    /// What all models have to save at the end.
    pub(crate) fn save_progress(&self) -> Arc<SaveProgress> {
        Arc::clone(&self.first.save_progress)
    }

    /// Offers a further model, loaded when it is first asked for.
    pub(crate) fn add(&self, further: &FurtherModelConfig) -> Result<()> {
        Ok(self.registry.add(configured(&self.first, further)?)?)
    }

    /// Every model holds what a running one can take up.
    pub(crate) fn take_up(&self, config: &Config) {
        self.registry.take_up(settings::live_options(config));
    }
}

/// Starts a registry of all models and loads those that are wanted from the start. `tells`: whether
/// somebody watches the load at a terminal.
pub(crate) fn start(
    arguments: &ModelArguments,
    named: &[String],
    mut config: Config,
    tells: bool,
) -> Result<ServedModels> {
    let mut named = named.iter().map(|text| NamedModel::parse(text));
    let first = named.next();
    if let Some(first) = &first {
        let both = "name the models after `serve` or with --model, not both";
        ensure!(arguments.model.is_none(), both);
        config.model.name = Some(first.model.clone());
    }
    let mut options = arguments.engine_options(&config)?;
    options.queue_time_max = Some(Duration::from_secs(config.limits.queue_seconds_max));
    options.token_target = options.pacing.itl_target;
    if let Some(name) = first.and_then(|first| first.name) {
        options.model_id = name;
    }
    let mut preload = vec![options.model_id.clone()];
    let mut entries = vec![ModelEntry { options: options.clone(), pinned: false, idle_max: None }];
    for NamedModel { name, model } in named {
        let found = model_file::find(&model)?;
        let options = beside(&options, found.path, name.unwrap_or(found.name));
        entries.push(ModelEntry { options, pinned: false, idle_max: None });
    }
    for further in &config.models {
        let entry = configured(&options, further)?;
        if further.preload {
            preload.push(entry.options.model_id.clone());
        }
        entries.push(entry);
    }
    let memory_budget_bytes = config.limits.memory_budget_mb.map(|megabytes| megabytes << 20);
    let taken: Vec<_> = entries.iter().map(|entry| entry.options.path.clone()).collect();
    let store = Store::open_default()?;
    let first = options.clone();
    let discover = move || {
        let found = store.list().unwrap_or_default().into_iter();
        let new = found.filter(|model| is_whole_or_first(model) && !taken.contains(&model.path));
        new.map(|model| ModelEntry {
            options: beside(&options, model.path, model.name),
            pinned: false,
            idle_max: None,
        })
        .collect()
    };
    let bar = tells.then(|| Bar::watch(&mut entries[0].options));
    let registry = Registry::start(
        entries,
        RegistryOptions {
            memory_budget_bytes,
            discover: Some(Box::new(discover)),
            ..RegistryOptions::default()
        },
    )?;
    load(&registry, &preload, bar)?;
    Ok(ServedModels { registry: Arc::new(registry), first })
}

fn load(registry: &Registry, names: &[String], mut bar: Option<Bar>) -> Result<()> {
    let tells = bar.is_some();
    for (index, name) in names.iter().enumerate() {
        let loaded = registry.load_blocking(name).map_err(anyhow::Error::msg);
        // It is the first model's, and is to be gone before a line is printed.
        drop(bar.take());
        let status = loaded.with_context(|| format!("the model `{name}` cannot be loaded"))?;
        if tells {
            tell(name, &status);
        }
        let loaded = registry.loaded_names();
        let has_gone = names[..index].iter().find(|before| !loaded.contains(before));
        if let Some(before) = has_gone {
            let budget = registry.memory().budget_bytes >> 20;
            anyhow::bail!(
                "`{before}` had to leave for `{name}`: the models to load at start do not fit \
                 into the memory budget of {budget} MiB together"
            );
        }
    }
    Ok(())
}

fn tell(name: &str, status: &ModelStatus) {
    let card = &status.card;
    eprintln!(
        "{name} on {}, {} tokens of context, {} MiB ({} of keys and values as {}), loaded in \
         {:.1} s",
        card.device,
        card.context_tokens_max,
        status.memory_estimate.resident_bytes() >> 20,
        status.memory_estimate.kv_bytes() >> 20,
        status.memory_estimate.kv_kind(),
        status.load_time.as_secs_f64()
    );
}

/// Another model, served like the first; its template is its own, and nothing in it is to fail.
fn beside(first: &EngineOptions, path: std::path::PathBuf, name: String) -> EngineOptions {
    // A cache beside the first model means one beside each; a path is for the first alone.
    let kept = |model: &Path| RepackCache::Beside(true).path(model);
    let repack_cache = kept(&path).filter(|_| first.repack_cache == kept(&first.path));
    EngineOptions {
        path,
        repack_cache,
        model_id: name,
        load_progress: None,
        context_tokens: None,
        output: None,
        ranks: false,
        adapters: Vec::new(),
        chat_template: None,
        call_format: None,
        // Another model has other layers.
        gpu_layers: match first.gpu_layers {
            GpuLayers::Count(_) => GpuLayers::Auto,
            named => named,
        },
        // Nor may it have experts.
        cpu_moe_layers: CpuMoeLayers::Auto,
        // Another model's tokens are other tokens.
        draft_model: None,
        failpoints: engine::Failpoints::default(),
        ..first.clone()
    }
}

fn configured(first: &EngineOptions, further: &FurtherModelConfig) -> Result<ModelEntry> {
    let found = model_file::find(&further.model)?;
    let name = further.name.clone().unwrap_or(found.name);
    let mut options = beside(first, found.path, name);
    options.context_tokens = further.context_tokens;
    options.output = further.pooling.and_then(output);
    options.ranks = further.pooling == Some(PoolingConfig::Rank);
    options.adapters = adapters(&further.adapters)?;
    let kv_cache_bytes = further.kv_cache_mb.map(|megabytes| megabytes << 20);
    options.kv_cache_bytes = kv_cache_bytes.or(first.kv_cache_bytes);
    let idle_max = further.idle_minutes.map(|minutes| Duration::from_secs(60 * minutes));
    Ok(ModelEntry { options, pinned: further.pinned, idle_max })
}

/// The parts of a split model after its first are no models.
fn is_whole_or_first(model: &LocalModel) -> bool {
    let stem = model.name.trim_end_matches(".gguf");
    let part = stem.rsplit_once("-of-").and_then(|(before, _)| before.rsplit_once('-'));
    part.is_none_or(|(_, part)| part.parse::<u32>().map_or(true, |part| part == 1))
}
