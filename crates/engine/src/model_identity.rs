//! Which model gives these answers? What is remembered of one must never be told for another.
//!
//! Weights of tens of gigabytes cannot be hashed at each start, so the hash is of what tells files
//! apart: the model as it was read, every tensor's name, length and a little of its bytes, and the
//! files' lengths and times of change. A model that was trained further differs in nearly every
//! tensor.

use std::path::Path;
use std::time::UNIX_EPOCH;

use models::DecoderSpec;
use ops::kv_format::KvFormat;
use sha2::{Digest, Sha256};
use weights::WeightFile;

use crate::{EngineError, ModelCard};

/// Read at the beginning, in the middle and at the end of each tensor: one page each.
const SAMPLE_BYTES: usize = 1024;

pub(crate) fn fingerprint(
    file: &WeightFile,
    spec: &DecoderSpec,
    card: &ModelCard,
    kv_format: KvFormat,
) -> Result<[u8; 32], EngineError> {
    let (mut hasher, mut sample) = (Sha256::new(), [0; SAMPLE_BYTES]);
    // The same file gives other answers with another context, device, cache or program.
    field(&mut hasher, card.device.as_bytes());
    field(&mut hasher, kv_format.name().as_bytes());
    field(&mut hasher, &card.context_tokens_max.to_le_bytes());
    field(&mut hasher, format!("{spec:?}").as_bytes());
    if let Ok(program) = std::env::current_exe() {
        field(&mut hasher, &stamp(&program));
    }
    for part in file.parts() {
        field(&mut hasher, &stamp(part.path()));
    }
    for tensor in file.tensors() {
        field(&mut hasher, tensor.name().as_bytes());
        let shape = file.shape(tensor.name())?;
        field(&mut hasher, shape.format.name().as_bytes());
        if !shape.is_stored {
            // Made of the files' bytes by the settings, which `spec` and the files' times tell.
            continue;
        }
        field(&mut hasher, &(shape.bytes as u64).to_le_bytes());
        let last = shape.bytes.saturating_sub(SAMPLE_BYTES);
        let sample = &mut sample[..shape.bytes.min(SAMPLE_BYTES)];
        for start in [0, last / 2, last] {
            file.read_sample(tensor.name(), start, sample)?;
            field(&mut hasher, sample);
        }
    }
    Ok(hasher.finalize().into())
}

fn field(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Length and time of change; nothing where the system does not tell.
fn stamp(path: &Path) -> Vec<u8> {
    let Ok(metadata) = std::fs::metadata(path) else { return Vec::new() };
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let mut stamp = metadata.len().to_le_bytes().to_vec();
    stamp.extend(changed.map_or(0, |time| time.as_nanos()).to_le_bytes());
    stamp
}
