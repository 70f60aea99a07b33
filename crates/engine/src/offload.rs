//! How much of a model does a device take that has no room for all of it? Its last layers and what
//! comes of them, as many as fit; those before, and the embedding, stay with the processor.
//!
//! A token reads every layer once, wherever it is, and it is the processor that reads slowly: so no
//! more layers than must are left to it.

use std::fmt;

use backend_split::{SplitBackend, places};
use device::Backend;

use crate::loading::{EngineOptions, SizedModel, check_memory};
use crate::{EngineError, backends};

/// How many of a model's layers a GPU takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuLayers {
    /// All where they fit, else as many as do.
    #[default]
    Auto,
    /// All, or the model is refused.
    All,
    /// The last of them.
    Count(u32),
}

/// How many of a model's layers are where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSplit {
    /// The first ones.
    pub on_processor: u32,
    pub on_device: u32,
}

impl fmt::Display for LayerSplit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { on_processor, on_device } = self;
        let all = on_processor + on_device;
        write!(formatter, "{on_processor} of {all} layers on the processor, {on_device} on the GPU")
    }
}

/// A model's device, or both of them.
pub(crate) struct Placed {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) sized: SizedModel,
    pub(crate) split: Option<LayerSplit>,
}

/// Finds out what a model takes on a device.
pub(crate) type Size<'a> = dyn Fn(&dyn Backend) -> Result<SizedModel, EngineError> + 'a;

/// Of what a device has left, a split leaves this part for what no plan counts: kernels, recorded
/// launches, the driver's own. On a card of 8 GiB it is 256 MiB.
const RESERVE_PART: u64 = 32;

/// Places a model as its options ask.
///
/// # Errors
/// [`EngineError`] as `size`, for a number of layers on a device that is no GPU, and for one that
/// the model cannot be cut at.
pub(crate) fn place(
    device: &str,
    backend: Box<dyn Backend>,
    options: &EngineOptions,
    size: &Size<'_>,
) -> Result<Placed, EngineError> {
    let asked = options.gpu_layers;
    if !backends::is_gpu(device) {
        if let GpuLayers::Count(count) = asked
            && options.device != "auto"
        {
            return Err(EngineError::Option(format!(
                "gpu_layers is {count} and the device is {device}, which is no GPU: name one with \
                 --device, or leave gpu_layers out"
            )));
        }
        let sized = size(backend.as_ref())?;
        return Ok(Placed { backend, sized, split: None });
    }
    let whole = size(backend.as_ref())?;
    let layers = whole.tape.layer_starts.len() as u32;
    let is_whole = match asked {
        GpuLayers::All => true,
        GpuLayers::Auto => check_memory(whole.memory, backend.as_ref()).is_ok(),
        GpuLayers::Count(count) => count >= layers,
    };
    let cuts = places(&whole.tape);
    if is_whole || (cuts.is_empty() && asked == GpuLayers::Auto) {
        return Ok(Placed { backend, sized: whole, split: None });
    }
    // Each device keeps keys and values as it does best, or both as asked.
    let processor = backends::open("cpu", options)?.backend;
    let mut split = SplitBackend::new(processor, backend, 0);
    let found = match asked {
        GpuLayers::Count(count) => Some(at_least(layers - count, &cuts)?),
        GpuLayers::Auto | GpuLayers::All => fewest(&mut split, &cuts, size),
    };
    if let Some(layer) = found {
        split.cut_before(layer);
        let sized = size(&split)?;
        if asked != GpuLayers::Auto || check_memory(sized.memory, &split).is_ok() {
            let split_layers = LayerSplit { on_processor: layer, on_device: layers - layer };
            let (backend, split) = (Box::new(split), Some(split_layers));
            return Ok(Placed { backend, sized, split });
        }
    }
    // Who checks its memory says what it lacks.
    let [_, backend] = split.into_parts();
    Ok(Placed { backend, sized: whole, split: None })
}

/// The first cut that leaves so many layers to the processor, or more.
fn at_least(layers: u32, cuts: &[u32]) -> Result<u32, EngineError> {
    cuts.iter().copied().find(|cut| *cut >= layers).ok_or_else(|| {
        EngineError::Option(format!(
            "gpu_layers leaves {layers} layers to the processor, and behind those the model cannot \
             be cut: choose more layers, `auto` or `all`, or --device cpu"
        ))
    })
}

/// The cut that leaves the fewest layers to the processor of those that fit; the fewer there are on
/// the device, the less it holds.
fn fewest(split: &mut SplitBackend, cuts: &[u32], size: &Size<'_>) -> Option<u32> {
    let own = split.own_memory()?;
    let room = own - own / RESERVE_PART;
    cuts[cuts.partition_point(|&cut| {
        split.cut_before(cut);
        size(split).map_or(true, |sized| sized.memory.device_bytes() > room)
    })..]
        .first()
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_layers_is_kept_or_fewer() {
        let cuts = [1, 2, 5];
        let at = |layers| at_least(layers, &cuts).map_err(|error| error.to_string());
        assert_eq!([at(1), at(2), at(3), at(5)], [Ok(1), Ok(2), Ok(5), Ok(5)]);
        assert!(at(6).is_err_and(|text| text.contains("6 layers to the processor")));
    }

    #[test]
    fn a_split_says_how_many_layers_are_where() {
        let text = LayerSplit { on_processor: 28, on_device: 52 }.to_string();
        assert_eq!(text, "28 of 80 layers on the processor, 52 on the GPU");
    }
}
