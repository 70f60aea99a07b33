//! `pelton show`: what a model is, what it needs, and whether it runs here.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use engine::{ContextNeed, DeviceFit, FileFacts, ModelSummary};

use crate::printing::say;
use crate::{units, wrapping};

#[derive(Args)]
pub(crate) struct ShowArguments {
    /// A name, or the path of a .gguf file or of a folder with config.json and .safetensors files
    #[arg(default_value = "smollm2")]
    model: String,
    /// List the tensors, too
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &ShowArguments) -> Result<()> {
    let path = hub::Store::open_default()?.resolve(&arguments.model)?.path;
    let facts = FileFacts::read(&path)?;
    // What no family reads is shown as far as it can be.
    let (summary, refusal) = match engine::inspect(&path) {
        Ok(summary) => (Some(summary), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let context = summary.as_ref().map(|summary| summary.context_tokens);
    let fits = context.map_or_else(Vec::new, |context| engine::fits(&path, context));
    if arguments.json {
        let tensors = arguments.tensors.then(|| tensors_json(&facts));
        let mut object = json(&path, &facts, summary.as_ref(), &fits);
        object["refusal"] = refusal.into();
        object["tensors"] = tensors.into();
        say!("{object:#}");
        return Ok(());
    }
    print_facts(&path, &facts);
    if let Some(summary) = &summary {
        print_model(summary);
    }
    print_fits(&fits, refusal.as_deref());
    if arguments.tensors {
        for tensor in &facts.tensors {
            let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
            say!("  {:<10} {:>14}  {}", tensor.format, dims.join(" x "), tensor.name);
        }
    }
    Ok(())
}

fn line(key: &str, value: &str) {
    say!("{key:<15} {}", wrapping::hanging(value, 16, wrapping::columns()));
}

/// `134.5 million`, `70.6 billion`.
fn large(count: u64) -> String {
    let count = count as f64;
    let (share, word) =
        if count < 999.95e6 { (count / 1e6, "million") } else { (count / 1e9, "billion") };
    format!("{share:.1} {word}")
}

fn print_facts(path: &Path, facts: &FileFacts) {
    line("file", &path.display().to_string());
    let kind = match (facts.kind, facts.files) {
        (kind, 1) => kind.to_owned(),
        (kind, files) => format!("{kind} in {files} files"),
    };
    line("type", &kind);
    line("size", &units::bytes(facts.file_bytes));
    line("architecture", &facts.architecture);
    line("parameters", &large(facts.parameters));
    let bytes: u64 = facts.mix.iter().map(|share| share.bytes).sum();
    let bits = 8.0 * bytes as f64 / facts.parameters.max(1) as f64;
    line("weights", &format!("{} at {bits:.2} bits", units::bytes(bytes)));
    for share in &facts.mix {
        let of_all = 100.0 * share.bytes as f64 / bytes.max(1) as f64;
        let size = units::bytes(share.bytes);
        let count = share.tensors;
        let tensors = if count == 1 { "tensor " } else { "tensors" };
        let (format, share) = (&share.format, format!("{of_all:>5.1} %"));
        line("", &format!("{format:<10} {count:>4} {tensors} {size:>12} {share}"));
    }
}

fn print_model(summary: &ModelSummary) {
    let given = |text: &Option<String>| text.clone().unwrap_or_else(|| "not given".to_owned());
    line("name", &given(&summary.name));
    line("license", &given(&summary.license));
    line(
        "shape",
        &format!(
            "{} layers, {} wide, {} heads over {} of keys",
            summary.layers, summary.width, summary.heads, summary.heads_kv
        ),
    );
    line("vocabulary", &units::count(summary.vocabulary_size as f64));
    let original = summary.context_before_stretching.map_or_else(String::new, |original| {
        format!(
            ", stretched from {original} by LongRoPE: where those are enough, \
             --context-tokens {original} answers better"
        )
    });
    line("context", &format!("{} tokens{original}", summary.context_tokens));
    line("chat template", if summary.has_chat_template { "yes" } else { "no" });
}

fn print_fits(fits: &[DeviceFit], refusal: Option<&str>) {
    if let Some(refusal) = refusal {
        line("runs here", &format!("no: {refusal}"));
        return;
    }
    let runs = |fit: &&DeviceFit| fit.needs.iter().any(|need| need.fits);
    match fits.iter().find(runs) {
        Some(fit) => {
            let most = fit.needs.iter().filter(|need| need.fits).map(|need| need.context_tokens);
            let tokens = most.max().unwrap_or(0);
            line("runs here", &format!("yes, on {}, with {tokens} tokens of context", fit.device));
        }
        None => line("runs here", "no: see below"),
    }
    for fit in fits {
        let room = fit.available_bytes.map_or_else(String::new, |bytes| {
            format!(", which has {} to give", units::bytes(bytes))
        });
        match &fit.refusal {
            Some(refusal) => line(&fit.device, &format!("no: {refusal}")),
            None => line(&fit.device, &format!("memory for one sequence{room}")),
        }
        for need in &fit.needs {
            let ContextNeed { context_tokens, weights_bytes, kv_bytes, resident_bytes, .. } = need;
            let verdict = match need.split {
                _ if !need.fits => "  more than there is".to_owned(),
                Some(split) => format!("  ({split})"),
                None => String::new(),
            };
            line(
                "",
                &format!(
                    "{context_tokens:>8} tokens {:>12}: weights {}, keys and values {}, the \
                     program {}{verdict}",
                    units::bytes(*resident_bytes),
                    units::bytes(*weights_bytes),
                    units::bytes(*kv_bytes),
                    units::bytes(engine::PROGRAM_BYTES),
                ),
            );
        }
    }
}

fn json(
    path: &Path,
    facts: &FileFacts,
    summary: Option<&ModelSummary>,
    fits: &[DeviceFit],
) -> serde_json::Value {
    let share = |share: &engine::FormatShare| {
        serde_json::json!({
            "format": share.format,
            "tensors": share.tensors,
            "weights": share.weights,
            "bytes": share.bytes,
        })
    };
    let need = |need: &ContextNeed| {
        serde_json::json!({
            "context_tokens": need.context_tokens,
            "weights_bytes": need.weights_bytes,
            "kv_bytes": need.kv_bytes,
            "resident_bytes": need.resident_bytes,
            "peak_bytes": need.peak_bytes,
            "fits": need.fits,
            "layers_on_processor": need.split.map(|split| split.on_processor),
            "layers_on_gpu": need.split.map(|split| split.on_device),
            "experts_on_processor": need.split.map(|split| split.experts_on_processor),
        })
    };
    let fit = |fit: &DeviceFit| {
        serde_json::json!({
            "device": fit.device,
            "available_bytes": fit.available_bytes,
            "refusal": fit.refusal,
            "needs": fit.needs.iter().map(need).collect::<Vec<_>>(),
        })
    };
    let runs = |fit: &&DeviceFit| fit.needs.iter().any(|need| need.fits);
    serde_json::json!({
        "path": path,
        "type": facts.kind,
        "files": facts.files,
        "architecture": facts.architecture,
        "name": summary.and_then(|summary| summary.name.as_ref()),
        "license": summary.and_then(|summary| summary.license.as_ref()),
        "parameters": facts.parameters,
        "layers": summary.map(|summary| summary.layers),
        "width": summary.map(|summary| summary.width),
        "heads": summary.map(|summary| summary.heads),
        "heads_kv": summary.map(|summary| summary.heads_kv),
        "context_tokens": summary.map(|summary| summary.context_tokens),
        "context_before_stretching": summary.and_then(|s| s.context_before_stretching),
        "vocabulary_size": summary.map(|summary| summary.vocabulary_size),
        "file_bytes": facts.file_bytes,
        "kv_bytes_per_token": summary.map(|summary| summary.kv_bytes_per_token),
        "has_chat_template": summary.map(|summary| summary.has_chat_template),
        "formats": facts.mix.iter().map(share).collect::<Vec<_>>(),
        "runs_on": fits.iter().find(runs).map(|fit| &fit.device),
        "devices": fits.iter().map(fit).collect::<Vec<_>>(),
    })
}

fn tensors_json(facts: &FileFacts) -> Vec<serde_json::Value> {
    let one = |tensor: &engine::TensorFacts| {
        serde_json::json!({
            "name": tensor.name,
            "format": tensor.format,
            "dims": tensor.dims,
            "bytes": tensor.bytes,
        })
    };
    facts.tensors.iter().map(one).collect()
}
