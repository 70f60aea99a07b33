//! How do a model's weights come to the device? Lent by their source, packed, and sent.

use std::collections::BTreeMap;

use device::{BlitStatistics, LoadError, Tape, WeightSource, WeightView};
use ops::WeightId;

use crate::gpu::{Address, Stream};
use crate::heaps::Heaps;
use crate::lowering::{MatrixKey, Plan};
use crate::packing::{Rows, Source, pack};
use crate::uploads::Uploads;

/// Addresses of weights.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) matrices: BTreeMap<MatrixKey, Address>,
    pub(crate) vectors: BTreeMap<WeightId, Address>,
    /// Of each of the tape's rotaries.
    pub(crate) frequencies: Vec<Address>,
    /// Of what adapters add to each product.
    pub(crate) tables: Vec<Address>,
}

/// What takes weights on their way.
pub(crate) struct Store<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) plan: &'a Plan,
    pub(crate) source: &'a dyn WeightSource,
    /// Sets buffers to zeros where a heap gives a place out again.
    pub(crate) stream: &'a Stream,
    pub(crate) heaps: &'a mut Heaps,
    pub(crate) uploads: Uploads,
}

impl Store<'_> {
    /// Packs every weight and copies it to the device; with what the copies were like.
    pub(crate) fn run(mut self) -> Result<(Stored, BlitStatistics), LoadError> {
        let mut stored = Stored::default();
        for &key in self.plan.matrices.keys() {
            let address = self.matrix(key)?;
            stored.matrices.insert(key, address);
        }
        for &id in self.plan.vectors.keys() {
            let mut values = Vec::new();
            self.tape.lend(id, self.source, &mut |view| {
                values.resize(view.rows * view.cols, 0.0);
                view.format.decode_row(view.bytes, &mut values);
            })?;
            let address = self.floats(&values)?;
            stored.vectors.insert(id, address);
        }
        for rotary in &self.tape.rotaries {
            let address = self.floats(&rotary.inverse_frequencies())?;
            stored.frequencies.push(address);
        }
        for pass in self.plan.low_ranks() {
            let address = self.send(pass.table(self.tape, &stored))?;
            stored.tables.push(address);
        }
        Ok((stored, self.uploads.finish()?))
    }

    fn matrix(&mut self, key: MatrixKey) -> Result<Address, LoadError> {
        let shape = &self.plan.matrices[&key];
        let mut packed = None;
        lend(self.tape, self.source, key, &mut |rows| packed = Some(pack(rows, shape.form)))?;
        let bytes = packed.expect("invariant: a source lends what it has").map_err(|_| {
            let name = &self.tape.weight(key.first).name;
            LoadError(format!("{name} holds numbers beyond f16, in which this device keeps it"))
        })?;
        assert_eq!(bytes.len(), shape.bytes(), "what is packed is what was planned");
        self.send(bytes)
    }

    fn floats(&mut self, values: &[f32]) -> Result<Address, LoadError> {
        self.send(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<Address, LoadError> {
        let address = self.heaps.carve(self.stream, "weights", bytes.len())?;
        // Before the lanes write it.
        self.stream.wait().map_err(|error| LoadError(error.to_string()))?;
        self.uploads.send(address, bytes)?;
        Ok(address)
    }
}

/// Lends a matrix's tensors to `take`, once.
fn lend(
    tape: &Tape,
    source: &dyn WeightSource,
    key: MatrixKey,
    take: &mut dyn FnMut(&Rows<'_>),
) -> Result<(), LoadError> {
    let parts = key.parts.map(|parts| parts as usize);
    let Some(up) = key.up else {
        return tape.lend(key.first, source, &mut |view| {
            take(&Rows { first: stored(view), up: None, parts });
        });
    };
    // A source lends one tensor at a time.
    let mut gate = (None, Vec::new());
    tape.lend(key.first, source, &mut |view| {
        gate = (Some((view.format, view.rows, view.cols)), view.bytes.to_vec());
    })?;
    let (shape, bytes) = (gate.0.expect("invariant: a source lends what it has"), &gate.1);
    let (format, rows, cols) = shape;
    tape.lend(up, source, &mut |view| {
        let first = Source { format, rows, cols, bytes };
        take(&Rows { first, up: Some(stored(view)), parts });
    })
}

fn stored(WeightView { format, rows, cols, bytes }: WeightView<'_>) -> Source<'_> {
    Source { format, rows, cols, bytes }
}
