//! `pelton config`: write a configuration file, say what holds, or describe what may stand in it.

use std::io::Write;
use std::path::PathBuf;

use ::config::{Loaded, Origin, Setting};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use crate::printing::say;
use crate::settings::ModelArguments;

#[derive(Args)]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Write a commented file with every key at its default
    Init(InitArguments),
    /// Say what is wrong with the configuration, or what holds and where each value came from
    Check(Box<CheckArguments>),
    /// Print the JSON schema of the file
    Schema,
}

#[derive(Args)]
struct InitArguments {
    /// Where to write it; `-` prints it
    #[arg(long, short, default_value = "pelton.yaml")]
    output: PathBuf,
    /// Overwrite a file that is there
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct CheckArguments {
    /// The file [default: the one that commands would read]
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run(arguments: &ConfigArguments) -> Result<()> {
    match &arguments.command {
        ConfigCommand::Init(arguments) => init(arguments),
        ConfigCommand::Check(arguments) => check(arguments),
        ConfigCommand::Schema => {
            say!("{:#}", ::config::json_schema());
            Ok(())
        }
    }
}

fn init(arguments: &InitArguments) -> Result<()> {
    let text = ::config::template();
    let path = &arguments.output;
    if path.as_os_str() == "-" {
        crate::printing::piece(&text);
        return Ok(());
    }
    let shown = path.display();
    let mut options = std::fs::OpenOptions::new();
    // Looking first and writing then would overwrite what came between.
    options.write(true).create(true).truncate(arguments.force).create_new(!arguments.force);
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{shown} is there already: --force overwrites it, --output names another")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {shown}")),
    };
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {shown}"))?;
    say!("wrote {shown}; `pelton serve --config {shown}` reads it");
    Ok(())
}

fn check(arguments: &CheckArguments) -> Result<()> {
    let mut sources = arguments.model.sources(Vec::new());
    let both = "name the file after `check` or with --config, not both";
    ensure!(arguments.file.is_none() || sources.file.is_none(), both);
    sources.file = arguments.file.clone().or(sources.file);
    let loaded = sources.load()?.with_keys_file()?;
    crate::logging::check(&loaded.config)?;
    if arguments.json {
        say!("{:#}", to_json(&loaded));
    } else {
        print(&loaded);
        loaded.without_effect().iter().for_each(|text| say!("{text}"));
    }
    let missing = missing(&loaded);
    ensure!(
        missing.is_empty(),
        "the configuration names what is not there\n{}",
        missing.join("\n")
    );
    Ok(())
}

fn print(loaded: &Loaded) {
    match &loaded.file {
        Some(path) => say!("{} is right; what holds:", path.display()),
        None => say!("there is no configuration file; what holds:"),
    }
    let texts: Vec<String> = loaded.settings.iter().map(|setting| shown(&setting.value)).collect();
    let width = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0).min(40);
    let keys = width(&mut loaded.settings.iter().map(|setting| setting.key.path.len()));
    let values = width(&mut texts.iter().map(String::len));
    for (Setting { key, origin, .. }, text) in loaded.settings.iter().zip(&texts) {
        let mark = if *origin == Origin::Default { "" } else { "  *" };
        say!("  {:<keys$}  {text:<values$}  {origin}{mark}", key.path);
    }
}

fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn to_json(loaded: &Loaded) -> serde_json::Value {
    let of = |setting: &Setting| {
        let entry = serde_json::json!({
            "value": setting.value,
            "from": setting.origin.to_string(),
        });
        (setting.key.path.clone(), entry)
    };
    let settings: serde_json::Map<_, _> = loaded.settings.iter().map(of).collect();
    let without_effect = loaded.without_effect();
    serde_json::json!({
        "file": loaded.file, "settings": settings, "without_effect": without_effect
    })
}

/// Places, models and devices that the configuration names and that are not here.
pub(super) fn missing(loaded: &Loaded) -> Vec<String> {
    let config = &loaded.config;
    let mut missing = loaded.missing_places();
    let further = config.models.iter().map(|model| ("models", &model.model));
    let named = [("model.name", &config.model.name), ("draft_model", &config.draft_model)];
    let named = named.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?)));
    for (key, name) in named.chain(further) {
        // A name on the hub may be pulled later; a path is there or not.
        let is_path = name.ends_with(".gguf") || name.starts_with(['/', '.', '~']);
        if is_path && !std::path::Path::new(name).is_file() {
            missing.push(format!("`{key}`: {name} is no file"));
        }
    }
    if !engine::is_device_name(&config.device) {
        let devices = engine::DEVICES.join(", ");
        missing.push(format!("`device`: there is no {}; devices: {devices}", config.device));
    }
    missing
}
