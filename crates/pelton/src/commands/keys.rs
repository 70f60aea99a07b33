//! `pelton keys`: make a key for one caller of a server, or say which there are. A key is shown
//! once; what is stored is its SHA-256.

use std::path::PathBuf;

use ::config::{KeyConfig, KeyPriority, Sources, add_key, key_entry};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use server::NewKey;

use crate::printing::say;
use crate::settings::FileArguments;

#[derive(Args)]
pub(crate) struct KeysArguments {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a key, show it once, and store what a server needs to know it
    Add(Box<AddArguments>),
    /// List the keys of the configuration and of its keys file
    #[command(visible_alias = "ls")]
    List(ListArguments),
}

#[derive(Args)]
struct AddArguments {
    /// Who gets it: letters, digits, `-`, `_` and `.`
    name: String,
    /// The keys file to add it to [default: `access.keys_file`; with neither it is printed]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A model that it may use; may be given several times [default: all]
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// Requests a minute [default: any number]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests_per_minute: Option<u32>,
    /// Tokens read and written a minute [default: any number]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    tokens_per_minute: Option<u64>,
    /// Tokens read and written within 24 hours [default: any number]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    tokens_per_day: Option<u64>,
    /// Requests that may run or wait at once [default: any number]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrent_max: Option<u32>,
    /// How urgent its requests are: low, normal or high
    #[arg(long, default_value = "normal", value_parser = priority)]
    priority: KeyPriority,
    /// Keys of one tenant share caches and take turns as one [default: the name]
    #[arg(long)]
    tenant: Option<String>,
    /// May load and unload models
    #[arg(long)]
    admin: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: FileArguments,
}

#[derive(Args)]
struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: FileArguments,
}

fn priority(text: &str) -> Result<KeyPriority, &'static str> {
    match text {
        "low" => Ok(KeyPriority::Low),
        "normal" => Ok(KeyPriority::Normal),
        "high" => Ok(KeyPriority::High),
        _ => Err("write low, normal or high"),
    }
}

pub(crate) fn run(arguments: &KeysArguments) -> Result<()> {
    match &arguments.command {
        KeysCommand::Add(arguments) => add(arguments),
        KeysCommand::List(arguments) => list(arguments),
    }
}

fn sources(settings: &FileArguments) -> Sources {
    Sources::of_process(settings.config.clone(), settings.set.clone())
}

fn add(arguments: &AddArguments) -> Result<()> {
    let loaded = sources(&arguments.settings).load()?;
    let taken = |key: &KeyConfig| key.name == arguments.name;
    if loaded.config.access.keys.iter().any(taken) {
        bail!("the configuration has a key of the name `{}` already", arguments.name);
    }
    let file = arguments.file.clone();
    let file = file.or_else(|| loaded.config.access.keys_file.as_ref().map(PathBuf::from));
    let new = NewKey::draw().context("the system gives no random bits")?;
    let key = KeyConfig {
        name: arguments.name.clone(),
        sha256: new.digest(),
        tenant: arguments.tenant.clone(),
        models: arguments.models.clone(),
        requests_per_minute: arguments.requests_per_minute,
        tokens_per_minute: arguments.tokens_per_minute,
        tokens_per_day: arguments.tokens_per_day,
        concurrent_max: arguments.concurrent_max,
        priority: arguments.priority,
        admin: arguments.admin,
    };
    key.check()?;
    if let Some(file) = &file {
        add_key(file, &key)?;
    }
    if arguments.json {
        say!("{:#}", json!({"key": new.to_string(), "entry": key, "file": file}));
        return Ok(());
    }
    say!("{new}");
    match &file {
        Some(file) => {
            eprintln!("stored its SHA-256 in {}; the key is not shown again", file.display());
            eprintln!("a running server takes it up at SIGHUP");
        }
        None => {
            eprintln!("the key is not shown again; store this under `access.keys`:");
            say!("\n{}", key_entry(&key).trim_end());
        }
    }
    Ok(())
}

fn list(arguments: &ListArguments) -> Result<()> {
    let loaded = sources(&arguments.settings).load()?.with_keys_file()?;
    let keys = &loaded.config.access.keys;
    if arguments.json {
        say!("{:#}", serde_json::to_value(keys)?);
        return Ok(());
    }
    if keys.is_empty() {
        eprintln!("there are no keys: whoever can reach the server may ask");
    }
    let width = keys.iter().map(|key| key.name.len()).max().unwrap_or(0);
    for key in keys {
        let limits = limits(key);
        let limits = if limits.is_empty() { "no limits".to_owned() } else { limits.join(", ") };
        say!("{:<width$}  {limits}", key.name);
    }
    Ok(())
}

/// What the key may, in words; what is as by default is left out.
fn limits(key: &KeyConfig) -> Vec<String> {
    let mut texts = Vec::new();
    if !key.models.is_empty() {
        texts.push(format!("models {}", key.models.join(" ")));
    }
    let counts = [
        (key.requests_per_minute.map(u64::from), "requests a minute"),
        (key.tokens_per_minute, "tokens a minute"),
        (key.tokens_per_day, "tokens a day"),
        (key.concurrent_max.map(u64::from), "at once"),
    ];
    texts.extend(counts.iter().filter_map(|(count, what)| Some(format!("{} {what}", (*count)?))));
    match key.priority {
        KeyPriority::Low => texts.push("low priority".to_owned()),
        KeyPriority::Normal => {}
        KeyPriority::High => texts.push("high priority".to_owned()),
    }
    if let Some(tenant) = &key.tenant {
        texts.push(format!("tenant {tenant}"));
    }
    if key.admin {
        texts.push("admin".to_owned());
    }
    texts
}
