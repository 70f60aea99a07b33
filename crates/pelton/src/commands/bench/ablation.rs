//! What is each system worth? The same served work with all of them on, with each switched off in
//! turn, and with all off; every turn in a process of its own, and the turns interleaved.
//!
//! Read `systems` (what can be switched off, and how), `work` (what is served), `worth` (what the
//! figures say together), `table`.

mod served;
mod systems;
mod table;
mod work;
mod worth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::config::Sources;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::systems::{Arm, System};
use self::worth::Figures;
use super::BenchArguments;
use super::rival::run_to_end;
use crate::model_file;
use crate::printing::say;
use crate::settings::DEFAULT_MODEL;
use crate::speaking::remark;

pub(super) use self::work::run as run_work;

/// What every turn works with.
struct Ground<'a> {
    arguments: &'a BenchArguments,
    file: PathBuf,
    configured: Vec<::config::Setting>,
    /// For the repack cache; removed at the end.
    folder: PathBuf,
    /// Of the flags of the command, and what the work needs.
    keys: BTreeMap<String, String>,
}

pub(super) fn run(arguments: &BenchArguments) -> Result<()> {
    let asked: Vec<&str> = arguments.ablate.iter().map(String::as_str).collect();
    let (systems, absent) = systems::chosen(&asked)?;
    for name in absent {
        remark(&format!("{name} is left out: this program has no switch for it"));
    }
    let scale = arguments.scale();
    ensure!((0.01..=100.0).contains(&scale), "--ablate-scale must be between 0.01 and 100");
    let loaded = arguments.model.load(Vec::new())?;
    for (system, key, on) in systems::overruled(&systems, &loaded.settings) {
        remark(&format!(
            "{system} is off as configured; it is on here but in its own turn: {key} {on}"
        ));
    }
    let config = loaded.config;
    let model = model_file::find(config.model.name.as_deref().unwrap_or(DEFAULT_MODEL))?;
    let folder = std::env::temp_dir().join(format!("pelton-ablation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).context("no folder for what is kept between turns")?;
    let mut keys: BTreeMap<String, String> = arguments.model.keys().into_iter().collect();
    keys.remove("model.name");
    let of_token = engine::inspect(&model.path)?.kv_bytes_per_token;
    let pool = (work::pool_tokens(scale) * of_token).div_ceil(1 << 20).max(1);
    keys.entry("limits.kv_cache_mb".to_owned()).or_insert_with(|| pool.to_string());
    let ground = Ground { arguments, file: model.path, configured: loaded.settings, folder, keys };
    let measured = ground.measure(&systems);
    // What is left of it is small and in the folder of temporary files.
    let _ = std::fs::remove_dir_all(&ground.folder);
    let arms = measured?;
    if arguments.json {
        say!("{:#}", table::to_json(&model.name, arguments.rounds(), &systems, &arms));
    } else {
        let rounds = arguments.rounds();
        say!("{}, {rounds} rounds in turn, work of scale {scale}", model.name);
        table::print(&systems, &arms);
    }
    Ok(())
}

impl Ground<'_> {
    /// The figures of every round of every arm.
    fn measure(&self, systems: &[&System]) -> Result<Vec<(Arm, Vec<Figures>)>> {
        let mut arms: Vec<(Arm, Vec<Figures>)> =
            systems::arms(systems).into_iter().map(|arm| (arm, Vec::new())).collect();
        // What no configuration may say is to be heard now, not in the last turn.
        for (arm, _) in &arms {
            let file = self.arguments.model.file.config.clone();
            let sources = Sources::of_process(file, self.keys(arm, systems).into_iter().collect());
            sources.load().with_context(|| format!("with {arm}"))?;
        }
        // What is kept for the next start is to be there at the first measured one.
        remark("preparing");
        self.turn(&Arm::ALL_ON, systems)?;
        let rounds = self.arguments.rounds();
        for round in 0..rounds {
            let count = arms.len();
            for index in 0..count {
                // Nobody always comes after the same one.
                let (arm, figures) = &mut arms[(index + round) % count];
                remark(&format!("round {} of {rounds}: {arm}", round + 1));
                figures.push(self.turn(arm, systems)?);
            }
        }
        Ok(arms)
    }

    /// All that one arm sets.
    fn keys(&self, arm: &Arm, systems: &[&System]) -> BTreeMap<String, String> {
        let mut keys = self.keys.clone();
        keys.extend(systems::keys(arm, systems, &self.configured, &self.folder));
        keys
    }

    /// One process with these systems on or off.
    fn turn(&self, arm: &Arm, systems: &[&System]) -> Result<Figures> {
        let keys = self.keys(arm, systems);
        let program = std::env::current_exe().context("this program's own path is unknown")?;
        let mut command = Command::new(program);
        let scale = self.arguments.scale().to_string();
        command.args(["bench", "--ablation-work", "--ablate-scale", &scale, "--model"]);
        command.arg(&self.file).args(self.arguments.model.other_flags());
        for (key, value) in &keys {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        self.forget_files();
        let (output, _) = run_to_end(command).with_context(|| format!("with {arm}"))?;
        let value: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("with {arm}: its figures cannot be read back"))?;
        Figures::read(&value)
    }

    /// The system is to read the model from the disk again: a start is measured cold.
    fn forget_files(&self) {
        drop_pages(&self.file);
        // A model may be a folder, too.
        for folder in [&self.file, &self.folder] {
            let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
            files.for_each(|entry| drop_pages(&entry.path()));
        }
    }
}

/// Where the system does not do it, starts are measured warm for everybody alike.
#[cfg(target_os = "linux")]
fn drop_pages(path: &Path) {
    use rustix::fs::{Advice, fadvise};
    if let Ok(file) = std::fs::File::open(path) {
        // Pages that were written and not yet stored cannot be dropped.
        let _ = file.sync_all();
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
}

#[cfg(not(target_os = "linux"))]
fn drop_pages(_: &Path) {}
