//! `pelton show`: what a model is and what it needs.

use anyhow::Result;
use clap::Args;

use crate::printing::say;

#[derive(Args)]
pub(crate) struct ShowArguments {
    /// A name, or the path of a .gguf file or of a folder with config.json and .safetensors files
    #[arg(default_value = "smollm2")]
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &ShowArguments) -> Result<()> {
    let file = hub::Store::open_default()?.resolve(&arguments.model)?;
    let summary = engine::inspect(&file.path)?;
    let formats: Vec<String> = summary
        .formats
        .iter()
        .map(|(name, bytes)| format!("{name} {:.1} MB", *bytes as f64 / 1e6))
        .collect();
    let contexts = [2048, 8192, 32_768, 131_072];
    let contexts = contexts.into_iter().filter(|&tokens| tokens <= summary.context_tokens);
    let needs: Vec<(u32, u64)> =
        contexts.map(|tokens| (tokens, summary.kv_bytes_per_token * u64::from(tokens))).collect();
    if arguments.json {
        let object = serde_json::json!({
            "path": file.path,
            "architecture": summary.architecture,
            "name": summary.name,
            "license": summary.license,
            "parameters": summary.parameters,
            "layers": summary.layers,
            "width": summary.width,
            "heads": summary.heads,
            "heads_kv": summary.heads_kv,
            "context_tokens": summary.context_tokens,
            "vocabulary_size": summary.vocabulary_size,
            "file_bytes": summary.file_bytes,
            "kv_bytes_per_token": summary.kv_bytes_per_token,
            "has_chat_template": summary.has_chat_template,
            "formats": summary.formats,
        });
        say!("{object:#}");
        return Ok(());
    }
    let line = |key: &str, value: String| say!("{key:<15} {value}");
    line("file", file.path.display().to_string());
    line("size", format!("{:.1} MB ({})", summary.file_bytes as f64 / 1e6, formats.join(", ")));
    line("architecture", summary.architecture.clone());
    line("name", summary.name.clone().unwrap_or_else(|| "not given".to_owned()));
    line("license", summary.license.clone().unwrap_or_else(|| "not given".to_owned()));
    line("parameters", format!("{:.1} million", summary.parameters as f64 / 1e6));
    line(
        "shape",
        format!(
            "{} layers, {} wide, {} heads over {} of keys",
            summary.layers, summary.width, summary.heads, summary.heads_kv
        ),
    );
    line("vocabulary", summary.vocabulary_size.to_string());
    line("context", format!("{} tokens", summary.context_tokens));
    line("chat template", if summary.has_chat_template { "yes" } else { "no" }.to_owned());
    for (tokens, bytes) in needs {
        let total = (summary.file_bytes + bytes) as f64 / 1e6;
        line("memory", format!("{total:.0} MB with {tokens} tokens of context"));
    }
    Ok(())
}
