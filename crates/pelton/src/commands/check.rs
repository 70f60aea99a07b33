//! `pelton check`: would this model serve? Loads it, computes one token, says what is wrong.

use anyhow::{Result, bail};
use clap::Args;
use engine::{End, GenerateRequest, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode};

use crate::loading;
use crate::printing::say;
use crate::settings::ModelArguments;
use crate::speaking;

#[derive(Args)]
pub(crate) struct CheckArguments {
    /// A name, or the path of a .gguf file or of a folder with config.json and .safetensors files
    path: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

pub(crate) fn run(arguments: &CheckArguments) -> Result<()> {
    let mut config = arguments.model.config()?;
    config.model.name = arguments.path.clone().or(config.model.name);
    let options = arguments.model.engine_options(&config)?;
    let summary = engine::inspect(&options.path)?;
    let engine = loading::load(&options)?;
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(vec![0]),
        params: SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let mut generation = speaking::runtime()?.block_on(engine.generate(request))?;
    while let Some(delta) = generation.next_blocking() {
        if let Some(End::Failed(fault)) = delta.end {
            bail!("the model loads but does not run: {fault}");
        }
    }
    if arguments.json {
        let object = serde_json::json!({
            "path": options.path,
            "architecture": summary.architecture,
            "parameters": summary.parameters,
            "runs": true,
        });
        say!("{object:#}");
        return Ok(());
    }
    say!(
        "{}: {} with {:.1} million parameters loads and runs",
        options.path.display(),
        summary.architecture,
        summary.parameters as f64 / 1e6
    );
    Ok(())
}
