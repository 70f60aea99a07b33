//! Does a model that cannot be served right fail when it loads, with the name of what is wrong?
//!
//! A model that loads is served as its makers meant it; there is no third case, in which a part is
//! left out and the answers are a little off.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use ops::quant_format::QuantFormat;
use testkit::tiny_model::TinyModel;
use weights::{GgufBuilder, TensorType, Value, WeightFile};

struct Tensor {
    name: String,
    kind: TensorType,
    dims: Vec<u64>,
    bytes: Vec<u8>,
}

/// A tiny model taken apart.
struct Parts {
    keys: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Parts {
    fn of(model: &TinyModel) -> Self {
        let file = WeightFile::from_bytes("tiny.gguf", model.to_bytes()).unwrap();
        let entries = file.metadata().iter();
        let keys = entries.map(|(key, value)| (key.to_owned(), value.clone())).collect();
        let tensor = |info: &weights::TensorInfo| Tensor {
            name: info.name().to_owned(),
            kind: info.kind(),
            dims: info.dims().to_vec(),
            bytes: file.tensor(info.name()).unwrap().bytes.to_vec(),
        };
        Self { keys, tensors: file.tensors().map(tensor).collect() }
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.retain(|(known, _)| known != key);
        self.keys.push((key.to_owned(), value.into()));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(known, _)| known != key);
        self
    }

    /// Another tensor; of zeros, in a type of `kind`, where a row of 64 takes `row_bytes`.
    fn with_tensor(mut self, name: &str, kind: u32, dims: &[u64], row_bytes: usize) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        let rows: u64 = dims[1..].iter().product();
        self.tensors.push(Tensor {
            name: name.to_owned(),
            kind: TensorType(kind),
            dims: dims.to_vec(),
            bytes: vec![0; rows as usize * row_bytes],
        });
        self
    }

    /// Loads as the engine does, on both backends; each refusal.
    fn refusals(&self) -> Vec<String> {
        let mut builder = GgufBuilder::new();
        for (key, value) in &self.keys {
            builder.key(key, value.clone());
        }
        for Tensor { name, kind, dims, bytes } in &self.tensors {
            builder.tensor_of_type(name, *kind, dims, bytes.as_slice());
        }
        let bytes = builder.to_bytes().unwrap();
        let file = WeightFile::from_bytes("changed.gguf", bytes).unwrap();
        let cpu = CpuBackend::open(Some(1), None).unwrap();
        let tokenizer = engine::read_tokenizer(file.metadata()).err().map(|e| e.to_string());
        let on_cpu = testkit::load(&file, &cpu, 32, 8).err().map(|e| e.to_string());
        let on_reference =
            testkit::load(&file, &ReferenceBackend, 32, 8).err().map(|e| e.to_string());
        [tokenizer, on_cpu, on_reference].into_iter().flatten().collect()
    }

    /// Fails unless every refusal, and at least one, names all of `names`.
    fn refused(&self, names: &[&str]) {
        let refusals = self.refusals();
        assert!(!refusals.is_empty(), "loads, and should not for {names:?}");
        for refusal in refusals {
            let is_named = names.iter().all(|name| refusal.contains(name));
            assert!(is_named, "`{refusal}` does not name {names:?}");
        }
    }
}

fn healthy() -> Parts {
    Parts::of(&TinyModel::default())
}

#[test]
fn load_or_never() {
    assert_eq!(healthy().refusals(), Vec::<String>::new());

    // Families.
    healthy().with("general.architecture", "rwkv7").refused(&["rwkv7", "llama"]);
    healthy().without("general.architecture").refused(&["general.architecture"]);

    // Operations that no family here has: of experts, of biases, of norms, of positions.
    let vector = 4 * 64;
    for name in ["blk.0.ffn_gate_inp.weight", "blk.1.ffn_down.bias", "blk.0.attn_k_norm.weight"] {
        healthy().with_tensor(name, 0, &[64], vector).refused(&[name]);
    }
    for kind in ["alibi", "longrope"] {
        healthy().with("llama.rope.scaling.type", kind).refused(&["rope.scaling.type", kind]);
    }

    // Formats: listed but not decoded, and never heard of.
    let name = "blk.1.attn_v.weight";
    healthy().with_tensor(name, 24, &[64, 32], 64).refused(&[name, "I8"]);
    healthy().with_tensor(name, 200, &[64, 32], 64).refused(&[name, "200"]);
    // A format that is decoded, where this tensor cannot have it.
    healthy().with_tensor("rope_freqs.weight", 1, &[8], 16).refused(&["rope_freqs.weight", "F16"]);

    // Shapes: turned around, of another size, missing.
    let name = "blk.0.ffn_up.weight";
    healthy().with_tensor(name, 0, &[96, 64], 4 * 96).refused(&[name, "96"]);
    healthy().with_tensor(name, 0, &[64, 95], vector).refused(&[name, "95"]);
    let mut missing = healthy();
    missing.tensors.retain(|tensor| tensor.name != name);
    missing.refused(&[name, "missing"]);

    // Tokenizers.
    let model = "tokenizer.ggml.model";
    healthy().with(model, "rwkv").refused(&[model, "bert", "gpt2"]);
    healthy().without(model).refused(&[model]);
    healthy().with("tokenizer.ggml.pre", "klingon").refused(&["klingon", "smollm"]);
}

/// What one device cannot do is refused there, and served by the other.
#[test]
fn heads_that_a_device_cannot_run_are_named() {
    let format = QuantFormat::F32;
    let model = TinyModel { width: 36, heads: 3, heads_kv: 1, format, ..TinyModel::default() };
    let refusals = Parts::of(&model).refusals();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(refusals[0].contains("heads have 12 elements"), "{refusals:?}");
}

/// Plain floats may have any width: rows of 48 and 40 are no whole number of groups of 32.
#[test]
fn odd_widths_are_served() {
    let (width, heads, heads_kv, feed_forward) = (48, 3, 1, 40);
    let format = QuantFormat::F32;
    let model = TinyModel { width, heads, heads_kv, feed_forward, format, ..TinyModel::default() };
    let file = WeightFile::from_bytes("odd.gguf", model.to_bytes()).unwrap();
    let logits = |backend: &dyn device::Backend| {
        let ids: Vec<u32> = (0..29).map(|i| i * 37 % 260).collect();
        let mut logits = Vec::new();
        let mut evaluation = testkit::load(&file, backend, 32, 7).unwrap();
        evaluation.each(&ids, |_, row| logits.extend_from_slice(row)).unwrap();
        logits
    };
    let expected = logits(&ReferenceBackend);
    let got = logits(&CpuBackend::open(Some(2), None).unwrap());
    let scale = expected.iter().fold(0f32, |scale, logit| scale.max(logit.abs()));
    for (got, want) in got.iter().zip(&expected) {
        // Keys and values are in f16 here; tiny_llama.rs says where the bound is from.
        assert!((got - want).abs() < 4e-3 * scale, "{got} for {want}");
    }
}
