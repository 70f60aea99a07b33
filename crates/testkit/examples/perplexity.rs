//! How surprised is a model by a text? For `tools/fidelity/perplexity.py`, which asks the engines
//! of the formats' makers the same.
//!
//! `perplexity MODEL IDS.json BACKEND [CONTEXT [CHUNKS]]`, built by `cargo build --release -p
//! testkit --example perplexity`, with BACKEND `cpu` or `reference`, and IDS a list of token ids.
//! As llama.cpp's tool does, the text is cut into pieces of CONTEXT ids (512), and what follows
//! each id of a piece's second half is looked at. Prints the number of ids looked at and the
//! perplexity.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use device::Backend;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: perplexity MODEL IDS.json BACKEND [CONTEXT [CHUNKS]]";
    ensure!((3..=5).contains(&arguments.len()), usage);
    let file = weights::open(&arguments[0])?;
    let ids: Vec<u32> = serde_json::from_str(&std::fs::read_to_string(&arguments[1])?)?;
    let backend: Box<dyn Backend> = match &*arguments[2] {
        "reference" => Box::new(ReferenceBackend),
        "cpu" => Box::new(CpuBackend::open(None, None)?),
        other => anyhow::bail!("backend {other} is not cpu or reference"),
    };
    let number = |at: usize, default: usize| {
        let given = arguments.get(at).map(|text| text.parse::<usize>().context(usage));
        given.unwrap_or(Ok(default))
    };
    let (context, chunks) = (number(3, 512)?, number(4, usize::MAX)?);
    ensure!(context >= 4 && ids.len() >= context, "a text of {} ids is too short", ids.len());
    let mut evaluation = testkit::load(&file, backend.as_ref(), u32::try_from(context)?, 128)?;
    let (mut sum, mut count) = (0f64, 0usize);
    for piece in ids.chunks_exact(context).take(chunks) {
        evaluation.each(&piece[..context - 1], |position, logits| {
            if position >= context / 2 {
                sum -= log_probability(logits, piece[position + 1] as usize);
                count += 1;
            }
        })?;
    }
    writeln!(std::io::stdout(), "{count} {:.5}", (sum / count as f64).exp())?;
    Ok(())
}

fn log_probability(logits: &[f32], id: usize) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    f64::from(logits[id]) - largest - total.ln()
}
