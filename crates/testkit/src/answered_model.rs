//! What did another implementation answer? Golden folders with the logits of whoever made them.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use device::Backend;
use weights::WeightFile;

use crate::positions;

const STEP_TOKENS: u32 = 7;
const CONTEXT: u32 = 64;

/// A model, a text, and another implementation's logits at each of its positions.
pub struct AnsweredModel {
    pub name: &'static str,
    file: WeightFile,
    ids: Vec<u32>,
    /// `[tokens, vocabulary]`.
    logits: Vec<f32>,
}

impl AnsweredModel {
    /// `golden/FOLDER/NAME` and its answers in `NAME.truth`: a count of tokens, as many ids, then
    /// logits, all of four bytes, little-endian.
    ///
    /// # Errors
    /// If a file cannot be read, or its tensors have other formats than these (sorted).
    pub fn open(folder: &str, name: &'static str, formats: &[&str]) -> anyhow::Result<Self> {
        let path = format!("{}/golden/{folder}/{name}", env!("CARGO_MANIFEST_DIR"));
        let file = weights::open(&path)?;
        let mut found = BTreeSet::new();
        for tensor in file.tensors() {
            found.insert(tensor.format()?.name());
        }
        ensure!(found.iter().eq(formats), "{name}: {found:?}");
        let truth = std::fs::read(format!("{path}.truth"))?;
        let (words, _) = truth.as_chunks::<4>();
        let (count, words) = words.split_first().context("a count of tokens")?;
        let (ids, logits) = words
            .split_at_checked(u32::from_le_bytes(*count) as usize)
            .context("as many ids as are counted")?;
        let ids = ids.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let logits = logits.iter().map(|&word| f32::from_le_bytes(word)).collect();
        Ok(Self { name, file, ids, logits })
    }

    /// The largest difference of any logit, relative to the largest logit.
    ///
    /// # Errors
    /// If the backend cannot load or run the model, or gives another number of logits.
    pub fn difference(&self, backend: &dyn Backend) -> anyhow::Result<f32> {
        let mut evaluation = positions::load(&self.file, backend, CONTEXT, STEP_TOKENS)?;
        let mut got = Vec::new();
        evaluation.each(&self.ids, |_, row| got.extend_from_slice(row))?;
        ensure!(got.len() == self.logits.len(), "{}: {} logits", self.name, got.len());
        let scale = self.logits.iter().fold(0f32, |scale, value| scale.max(value.abs()));
        let apart = got.iter().zip(&self.logits).map(|(got, want)| (got - want).abs());
        // Not `f32::max` alone, which passes over what is no number.
        let largest = apart.fold(0f32, |most, x| if x.is_nan() { x } else { most.max(x) });
        ensure!(!largest.is_nan(), "{}: a logit is no number", self.name);
        Ok(largest / scale)
    }
}
