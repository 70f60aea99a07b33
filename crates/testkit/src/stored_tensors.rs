//! How does a backend read weights straight from a model file, without an engine?

use device::{LoadError, WeightSource, WeightView};
use weights::WeightFile;

/// The tensors of a file, by name.
pub struct StoredTensors<'a>(pub &'a WeightFile);

impl WeightSource for StoredTensors<'_> {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        let tensor = self.0.tensor(name).map_err(|error| LoadError(error.to_string()))?;
        Ok(WeightView {
            format: tensor.format,
            rows: tensor.rows,
            cols: tensor.cols,
            bytes: tensor.bytes,
        })
    }

    fn own_name(&self, name: &str) -> String {
        self.0.own_name(name)
    }
}
