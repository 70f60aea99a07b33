//! Writes a backend's logits at every position of a file of texts, for `tools/fidelity`.
//!
//! `cargo run --release -p testkit --example logits -- MODEL POSITIONS.json BACKEND OUT [KV]`
//! with BACKEND `cpu`, `cpu:portable`, `cpu:avx2`... or `reference`, and KV the form of cached keys
//! and values. OUT is little-endian f32, `[positions, vocabulary]`, all documents in order, without
//! each document's last id.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use device::Backend;
use ops::kv_format::KvFormat;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: logits MODEL POSITIONS.json BACKEND OUT [KV]";
    ensure!(matches!(arguments.len(), 4 | 5), usage);
    let name = arguments.get(4).map_or(KvFormat::default().name(), String::as_str);
    let kv = KvFormat::from_name(name).context(usage)?;
    let file = weights::open(&arguments[0])?;
    let positions: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&arguments[1])?)?;
    let backend: Box<dyn Backend> = match arguments[2].split_once(':') {
        None if arguments[2] == "reference" => Box::new(ReferenceBackend),
        None => Box::new(CpuBackend::open(None, None)?.with_kv_format(kv)),
        Some((_, isa)) => Box::new(CpuBackend::open(None, Some(isa))?.with_kv_format(kv)),
    };
    let mut out = std::io::BufWriter::new(std::fs::File::create(&arguments[3])?);
    let mut evaluation = testkit::load(&file, backend.as_ref(), 2048, 128)?;
    let documents = positions["documents"].as_array().context("no documents")?;
    for document in documents {
        let ids: Vec<u32> = serde_json::from_value(document["ids"].clone())?;
        let rows = document["rows"].as_u64().context("no rows")? as usize;
        let mut failed = None;
        evaluation.each(&ids[..rows], |_, logits| {
            let bytes = logits.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
            failed = failed.take().or(out.write_all(&bytes).err());
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    out.flush()?;
    Ok(())
}
