//! What did another implementation answer? Golden folders with the logits of whoever made them.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use device::Backend;
use weights::WeightFile;

use crate::nearness::{Nearness, difference};
use crate::positions::{self, Evaluation};

const STEP_TOKENS: u32 = 7;
const CONTEXT: u32 = 64;

/// A model, a text, and another implementation's logits at each of its positions.
pub struct AnsweredModel {
    pub name: &'static str,
    file: WeightFile,
    ids: Vec<u32>,
    /// `[tokens, vocabulary]`.
    logits: Vec<f32>,
    /// `[layers][tokens, width]`; none where nobody kept them.
    streams: Vec<Vec<f32>>,
}

impl AnsweredModel {
    /// `golden/FOLDER/NAME` and its answers in `NAME.truth`: a count of tokens, as many ids, then
    /// logits, then perhaps the stream behind each layer, all of four bytes, little-endian.
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
        let dims = models::read_spec(&file, &models::LoadSettings::default())?.dims;
        let truth = std::fs::read(format!("{path}.truth"))?;
        let (words, _) = truth.as_chunks::<4>();
        let (count, words) = words.split_first().context("a count of tokens")?;
        let count = u32::from_le_bytes(*count) as usize;
        let too_short = "as many ids and logits as are counted";
        let (ids, words) = words.split_at_checked(count).context(too_short)?;
        let ids = ids.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        let logits = count * dims.vocabulary as usize;
        let (logits, streams) = values.split_at_checked(logits).context(too_short)?;
        let streams = streams.chunks_exact(count * dims.width as usize);
        ensure!(streams.remainder().is_empty(), "{name}: a part of a stream");
        let streams: Vec<Vec<f32>> = streams.map(<[f32]>::to_vec).collect();
        let all = dims.layers as usize;
        ensure!([0, all].contains(&streams.len()), "{name}: {} streams", streams.len());
        Ok(Self { name, file, ids, logits: logits.to_vec(), streams })
    }

    /// How near a backend's logits are.
    ///
    /// # Errors
    /// If the backend cannot load or run the model.
    pub fn logits(&self, backend: &dyn Backend) -> anyhow::Result<Nearness> {
        let got = self.rows(positions::load(&self.file, backend, CONTEXT, STEP_TOKENS)?)?;
        Ok(Nearness::of(&got, &self.logits, self.logits.len() / self.ids.len()))
    }

    /// The largest difference of the stream behind each layer, relative to its largest value.
    ///
    /// # Errors
    /// If the backend cannot load or run the model.
    pub fn streams(&self, backend: &dyn Backend) -> anyhow::Result<Vec<f32>> {
        let mut apart = Vec::with_capacity(self.streams.len());
        for (layer, truth) in (1..).zip(&self.streams) {
            let stream = positions::load_stream(&self.file, backend, layer, CONTEXT, STEP_TOKENS)?;
            apart.push(difference(&self.rows(stream)?, truth));
        }
        Ok(apart)
    }

    fn rows(&self, mut evaluation: Evaluation) -> anyhow::Result<Vec<f32>> {
        let mut rows = Vec::new();
        evaluation.each(&self.ids, |_, row| rows.extend_from_slice(row))?;
        Ok(rows)
    }
}
