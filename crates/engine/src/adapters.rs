//! Which adapters does a model have? Read and checked before the model is loaded, held while its
//! weights are packed, and named by requests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use device::{LoadError, WeightShape, WeightView};
use models::{Adapted, DecoderSpec};
use ops::quant_format::QuantFormat;
use sha2::{Digest, Sha256};
use weights::{Adapter, AdapterMatrix, AdapterPart, WeightFile};

use crate::EngineError;

/// An adapter that a model is loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterOptions {
    /// The name that requests use.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

/// One that requests may name.
#[derive(Clone, Debug)]
pub(crate) struct NamedAdapter {
    pub(crate) name: String,
    /// Tells what it makes from what all others make, across restarts too.
    pub(crate) namespace: String,
}

/// All adapters of a model; a number is a place among them.
#[derive(Default)]
pub(crate) struct Adapters {
    pub(crate) named: Vec<NamedAdapter>,
    /// What each adds to which tensor.
    pub(crate) tables: Vec<models::Adapter>,
    /// Their own tensors, as little-endian f32.
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Adapters {
    /// # Errors
    /// [`EngineError::Adapter`] naming the one that cannot be read, or has another's name.
    pub(crate) fn open(
        options: &[AdapterOptions],
        model: &str,
        file: &WeightFile,
        spec: &DecoderSpec,
    ) -> Result<Self, EngineError> {
        let mut adapters = Self::default();
        for AdapterOptions { name, path } in options {
            let wrong = |problem: String| EngineError::Adapter { name: name.clone(), problem };
            if name == model || adapters.named.iter().any(|other| other.name == *name) {
                return Err(wrong("the model or another adapter has this name".to_owned()));
            }
            let mut adapter = Adapter::open(path).map_err(|error| wrong(error.to_string()))?;
            check(&adapter, file).map_err(wrong)?;
            if models::stores_permuted(file) {
                permute(&mut adapter, spec);
            }
            adapters.add(name, adapter);
        }
        Ok(adapters)
    }

    fn add(&mut self, name: &str, adapter: Adapter) {
        let (mut hasher, mut table) = (Sha256::new(), models::Adapter::new());
        for (tensor, AdapterPart { down, up, scale }) in adapter.parts {
            let rank = down.rows;
            hasher.update(tensor.as_bytes());
            hasher.update(scale.to_le_bytes());
            let mut keep = |side: &str, matrix: AdapterMatrix| {
                let bytes: Vec<u8> = matrix.values.iter().flat_map(|v| v.to_le_bytes()).collect();
                hasher.update(&bytes);
                let (rows, cols) = (matrix.rows as usize, matrix.cols as usize);
                let own = format!("adapter {name}: {side} of {tensor}");
                self.tensors.insert(own.clone(), Stored { rows, cols, bytes });
                own
            };
            let (down, up) = (keep("down", down), keep("up", up));
            table.insert(tensor, Adapted { down, up, rank, scale });
        }
        let digest: String =
            hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let namespace = format!("{name} {digest}");
        self.named.push(NamedAdapter { name: name.to_owned(), namespace });
        self.tables.push(table);
    }

    fn find(&self, tensor: &str) -> Result<&Stored, LoadError> {
        let found = self.tensors.get(tensor);
        found.ok_or_else(|| LoadError(format!("tensor {tensor} is missing")))
    }

    /// Held while the model is loaded.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum()
    }

    pub(crate) fn holds(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    pub(crate) fn weight(&self, tensor: &str) -> Result<WeightView<'_>, LoadError> {
        let Stored { rows, cols, bytes } = self.find(tensor)?;
        Ok(WeightView { format: QuantFormat::F32, rows: *rows, cols: *cols, bytes })
    }

    pub(crate) fn shape(&self, tensor: &str) -> Result<WeightShape, LoadError> {
        let WeightView { format, rows, cols, bytes } = self.weight(tensor)?;
        Ok(WeightShape { format, rows, cols, bytes: bytes.len() })
    }
}

/// Whether the model has what it adapts, in the same shape.
fn check(adapter: &Adapter, file: &WeightFile) -> Result<(), String> {
    for (tensor, AdapterPart { down, up, .. }) in &adapter.parts {
        let missing = |_| format!("it adapts {tensor}, which the model does not have");
        let shape = file.shape(tensor).map_err(missing)?;
        let (rows, cols) = (up.rows as usize, down.cols as usize);
        if (shape.rows, shape.cols) != (rows, cols) {
            let (own, other) = (shape.rows, shape.cols);
            return Err(format!(
                "it adapts a {tensor} of {rows} x {cols}, the model's is {own} x {other}: it was \
                 made for another model"
            ));
        }
    }
    Ok(())
}

/// Which adapter a request names: by its name, or by `model:name`, where the model may have
/// several names.
pub(crate) fn number_of<'a>(
    mut names: impl Iterator<Item = &'a str>,
    models: &[&str],
    asked: &str,
) -> Option<usize> {
    let behind = |model: &&str| asked.strip_prefix(*model)?.strip_prefix(':');
    let name = models.iter().find_map(behind).unwrap_or(asked);
    names.position(|known| known == name)
}

/// Puts the rows of queries and keys into the order of a file whose rotary pairs are adjacent.
fn permute(adapter: &mut Adapter, spec: &DecoderSpec) {
    for (tensor, AdapterPart { up, .. }) in &mut adapter.parts {
        let heads = match tensor.rsplit('.').nth(1) {
            Some("attn_q") => spec.dims.heads,
            Some("attn_k") => spec.dims.heads_kv,
            _ => continue,
        };
        let (head_rows, cols) = ((up.rows / heads) as usize, up.cols as usize);
        if head_rows < 2 || !up.rows.is_multiple_of(2 * heads) {
            // Of no use to this model, which will say so.
            continue;
        }
        let half = head_rows / 2;
        let mut rows = Vec::with_capacity(up.values.len());
        for head in up.values.chunks_exact(head_rows * cols) {
            for pair in 0..half {
                for place in [pair, half + pair] {
                    rows.extend_from_slice(&head[place * cols..(place + 1) * cols]);
                }
            }
        }
        up.values = rows;
    }
}
