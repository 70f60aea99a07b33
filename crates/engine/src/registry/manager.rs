//! Who loads and unloads? One thread, one model at a time, so that two requests for one model
//! cause one load, and memory is given back before it is taken.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::table::{Leaving, Load, Table};
use super::{Lease, ModelEntry, Shared};
use crate::{Engine, ModelPlan};

/// A model that was pulled while the server runs can be asked for about this much later; the look
/// costs a few system calls a folder.
const DISCOVER_EVERY: Duration = Duration::from_secs(2);

type Discover<'a> = Option<&'a (dyn Fn() -> Vec<ModelEntry> + Send)>;

/// Serves until the registry stops and the last lease is given back.
pub(super) fn run(shared: &Arc<Shared>, discover: Discover<'_>) {
    let mut found = Found::default();
    let mut looked: Option<Instant> = None;
    loop {
        if discover.is_some() && looked.is_none_or(|then| then.elapsed() >= DISCOVER_EVERY) {
            found.look(shared, discover);
            looked = Some(Instant::now());
        }
        let now = Instant::now();
        let mut table = shared.lock();
        let leaving = table.begin_unloads(now);
        if !leaving.is_empty() {
            drop(table);
            unload(shared, leaving);
            continue;
        }
        if let Some(load) = table.begin_load(now) {
            drop(table);
            self::load(shared, load);
            continue;
        }
        if table.is_stopping() && table.held_bytes() == 0 {
            return;
        }
        let next_unload = table.next_unload(now);
        let next_look = discover.map(|_| DISCOVER_EVERY);
        let patience = next_unload.into_iter().chain(next_look).min();
        // An hour is as good as forever, and no overflow.
        let patience = patience.unwrap_or(Duration::from_secs(3600));
        drop(shared.work.wait_timeout(table, patience).unwrap_or_else(PoisonError::into_inner));
    }
}

fn unload(shared: &Shared, leaving: Leaving) {
    for (name, engine) in leaving {
        // Ends its threads and returns its memory.
        drop(engine);
        tracing::info!(model = name, "unloaded");
        shared.lock().unloaded(&name);
    }
}

fn load(shared: &Arc<Shared>, load: Load) {
    let Load { name, options, leaving } = load;
    unload(shared, leaving);
    let start = Instant::now();
    let caught = catch_unwind(AssertUnwindSafe(|| Engine::load_beside(&options, &shared.turns)));
    let result = match caught {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("loading it broke; please report it".to_owned()),
    };
    let load_time = start.elapsed();
    match &result {
        Ok(_) => tracing::info!(model = name, ms = load_time.as_millis() as u64, "loaded"),
        Err(why) => tracing::error!(model = name, why, "could not be loaded"),
    }
    let mut table = shared.lock();
    let lease = |table: &mut Table, index: usize| Lease::new(shared, table, index);
    let news = table.loaded(&name, result, load_time, lease);
    drop(table);
    for one in news {
        one.tell();
    }
}

/// Files that were found and cannot be served, so that each is read once.
#[derive(Default)]
struct Found {
    /// Path and length: a file that is still being written is read again.
    rejected: BTreeSet<(PathBuf, u64)>,
}

impl Found {
    fn look(&mut self, shared: &Shared, discover: Discover<'_>) {
        let Some(discover) = discover else { return };
        let entries = discover();
        let is_there = |name: &str| entries.iter().any(|entry| entry.options.model_id == name);
        shared.lock().keep_found(is_there);
        for entry in &entries {
            let options = &entry.options;
            let bytes = std::fs::metadata(&options.path).map_or(0, |data| data.len());
            let file = (options.path.clone(), bytes);
            if shared.lock().knows(&options.model_id) || self.rejected.contains(&file) {
                continue;
            }
            match ModelPlan::read(options) {
                Ok(plan) => shared.lock().add_found(entry.clone(), plan),
                Err(error) => {
                    tracing::warn!(model = options.model_id, %error, "cannot be served");
                    self.rejected.insert(file);
                }
            }
        }
    }
}
