//! Do folders say the same when `quantize` has made a file or another folder of them?
//!
//! Folders of every family, as their authors' code saved them, with a tokenizer that is small
//! enough for them; what they say themselves is compared in `families.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use backend_reference::ReferenceBackend;
use quantize::{GgufChoices, GgufRecipe, MlxChoices, MlxRecipe, to_gguf, to_mlx};
use serde_json::json;
use weights::{Array, Value};

struct Case {
    name: String,
    folder: PathBuf,
    ids: Vec<u32>,
    /// What it says itself.
    logits: Vec<f32>,
}

/// Each family's folder, copied below `place` with a tokenizer.
fn cases(place: &Path) -> Vec<Case> {
    let golden = format!("{}/golden/families", env!("CARGO_MANIFEST_DIR"));
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(golden).unwrap() {
        let source = entry.unwrap().path();
        if !source.is_dir() {
            continue;
        }
        let name = source.file_name().unwrap().to_str().unwrap().to_owned();
        let folder = place.join(&name);
        std::fs::create_dir(&folder).unwrap();
        for file in std::fs::read_dir(&source).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        // Of a vocabulary that is not here.
        let settings = std::fs::read(folder.join("config.json")).unwrap();
        let mut settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
        settings.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_token_id"));
        std::fs::write(folder.join("config.json"), settings.to_string()).unwrap();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        });
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let told = weights::open(source.with_extension("gguf")).unwrap();
        let Some(Value::Array(ids)) = told.metadata().get("golden.ids") else { panic!("{name}") };
        let Array::I32(ids) = &**ids else { panic!("{name}: {ids:?}") };
        let ids: Vec<u32> = ids.iter().map(|&id| id.try_into().unwrap()).collect();
        let logits = says(&folder, &ids);
        cases.push(Case { name, folder, ids, logits });
    }
    assert!(cases.len() >= 28, "{} folders", cases.len());
    cases
}

fn says(path: &Path, ids: &[u32]) -> Vec<f32> {
    let file = weights::open(path).unwrap();
    let loaded = testkit::load(&file, &ReferenceBackend, ids.len() as u32, 13);
    let mut rows = Vec::new();
    let mut evaluation = loaded.unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
    evaluation.each(ids, |_, row| rows.extend_from_slice(row)).unwrap();
    rows
}

/// Root of the mean square of what differs, relative to the logits' own.
fn difference(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let square = |value: f32| f64::from(value) * f64::from(value);
    let errors: f64 = got.iter().zip(wanted).map(|(got, wanted)| square(got - wanted)).sum();
    let all: f64 = wanted.iter().map(|&wanted| square(wanted)).sum();
    (errors / all).sqrt()
}

/// What llama.cpp reads of the tensors, what is of pictures alone, and which layers are nets where
/// each is named.
fn is_left(key: &str) -> bool {
    let ends = [".vocab_size", ".n_deepstack_layers", ".full_attention_interval"];
    key.starts_with("golden.") || ends.iter().any(|end| key.ends_with(end))
}

#[test]
fn a_file_of_every_family_says_what_its_folder_says() {
    let place = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for case in cases(place.path()) {
        let out = place.path().join(format!("{}.gguf", case.name));
        let recipe = GgufRecipe::named("F32").unwrap();
        let choices = GgufChoices { recipe, exceptions: vec![], threads: 2, replaces: false };
        to_gguf(&case.folder, &out, &choices, &mut |_| {})
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        // llama.cpp has defaults of its own where a key is missing: none may be that the gguf
        // package's own file has.
        let golden = format!("{}/golden/families", env!("CARGO_MANIFEST_DIR"));
        let golden = weights::open(Path::new(&golden).join(format!("{}.gguf", case.name))).unwrap();
        let made = weights::open(&out).unwrap();
        let told = golden.metadata().iter().filter(|(_, value)| **value != Value::U32(0));
        let told = told.map(|(key, _)| key).filter(|key| !is_left(key));
        let lacking: Vec<&str> = told.filter(|key| made.metadata().get(key).is_none()).collect();
        if !lacking.is_empty() {
            wrong.push(format!("{} lacks {lacking:?}", case.name));
        }
        let moved = difference(&says(&out, &case.ids), &case.logits);
        eprintln!("{}: {moved:.1e}", case.name);
        assert!(moved < 1e-5, "{}: {moved:e}", case.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_mlx_folder_of_every_family_is_near_to_what_its_folder_says() {
    let place = tempfile::tempdir().unwrap();
    for case in cases(place.path()) {
        let out = place.path().join(format!("{}.mlx", case.name));
        let recipe = MlxRecipe { bits: 8, better_bits: 8, group: 32 };
        let choices = MlxChoices { recipe, exceptions: vec![], threads: 2 };
        to_mlx(&case.folder, &out, &choices, &mut |_| {})
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let moved = difference(&says(&out, &case.ids), &case.logits);
        eprintln!("{}: {moved:.1e}", case.name);
        // A token that comes to another expert moves a whole row, and states of nets add up errors.
        assert!(moved < 0.2, "{}: {moved:e}", case.name);
    }
}
