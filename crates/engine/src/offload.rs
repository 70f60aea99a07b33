//! How much of a model does a device take that has no room for all of it? As much as fits: its last
//! layers and what comes of them, or all but the experts of its first ones; the processor has the
//! rest.
//!
//! A token reads all layers once, wherever they are, but few of a layer's experts; and it is the
//! processor that reads slowly. So no more must be left to it than has to be, and of two ways to
//! leave as much, the one that takes a token less time.

use std::fmt;
use std::time::Duration;

use backend_split::{Share, SplitBackend, cut, layers_with_experts, places};
use device::{Backend, LoadError, Tape};

use crate::loading::{EngineOptions, SizedModel, check_memory};
use crate::{EngineError, ModelMemory, backends};

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

/// Of how many of a model's layers the processor has the experts although a GPU has the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuMoeLayers {
    /// Of none where they fit, else of as many as must be, where that is faster than whole layers.
    #[default]
    Auto,
    /// Of every one.
    All,
    /// Of the first so many.
    Count(u32),
}

/// How much of a model is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSplit {
    /// The first ones.
    pub on_processor: u32,
    pub on_device: u32,
    /// Of the latter, those whose experts are on the processor.
    pub experts_on_processor: u32,
}

impl fmt::Display for LayerSplit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { on_processor, on_device, experts_on_processor: experts } = self;
        let all = on_processor + on_device;
        match (on_processor, experts) {
            (_, 0) => write!(
                formatter,
                "{on_processor} of {all} layers on the processor, {on_device} on the GPU"
            ),
            (0, _) => write!(
                formatter,
                "the experts of {experts} of {all} layers on the processor, all else on the GPU"
            ),
            _ => write!(
                formatter,
                "{on_processor} of {all} layers and the experts of {experts} others on the \
                 processor, all else on the GPU"
            ),
        }
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

/// Finds out what is loaded beside a model, on its device.
pub(crate) type Beside<'a> = dyn Fn(&SizedModel) -> Result<ModelMemory, EngineError> + 'a;

/// Finds out how many bytes of weights a token reads of a tape.
pub(crate) type TokenBytes<'a> = dyn Fn(&Tape) -> Result<u64, LoadError> + 'a;

/// Of what a device has left, a split leaves this part for what no plan counts: kernels, recorded
/// launches, the driver's own. On a card of 8 GiB it is 256 MiB.
const RESERVE_PART: u64 = 32;

/// From the end of one part's turn to the begin of the other's: a device is waited for, rows are
/// copied, threads wake up or launches begin. Some 15 µs beside an H100
/// (bench/records/2026-11-28-h100-2.md).
const CROSSING: Duration = Duration::from_micros(20);

/// Places a model as its options ask.
///
/// # Errors
/// [`EngineError`] as `size`, for a number of layers on a device that is no GPU, for one that the
/// model cannot be cut at, and for experts of a model that has none.
pub(crate) fn place(
    device: &str,
    backend: Box<dyn Backend>,
    options: &EngineOptions,
    (size, beside): (&Size<'_>, &Beside<'_>),
    token_bytes: &TokenBytes<'_>,
) -> Result<Placed, EngineError> {
    let (layers_asked, experts_asked) = (options.gpu_layers, options.cpu_moe_layers);
    if !backends::is_gpu(device) {
        check_no_gpu(device, options)?;
        let sized = size(backend.as_ref())?;
        return Ok(Placed { backend, sized, split: None });
    }
    let whole = size(backend.as_ref())?;
    let beside = beside(&whole)?;
    let fits = |mut memory: ModelMemory, backend: &dyn Backend| {
        memory += beside;
        check_memory(memory, backend).is_ok()
    };
    let layers = whole.tape.layer_starts.len() as u32;
    let mixtures = layers_with_experts(&whole.tape);
    let experts = experts_left(experts_asked, layers, &mixtures)?;
    let is_whole = match layers_asked {
        GpuLayers::All => true,
        GpuLayers::Auto => fits(whole.memory, backend.as_ref()),
        GpuLayers::Count(count) => count >= layers,
    };
    let cuts = places(&whole.tape);
    let nothing_to_cut = cuts.is_empty() && mixtures.is_empty();
    if experts.unwrap_or(0) == 0
        && (is_whole || (nothing_to_cut && layers_asked == GpuLayers::Auto))
    {
        return Ok(Placed { backend, sized: whole, split: None });
    }
    // Each device keeps keys and values as it does best, or both as asked.
    let processor = backends::open("cpu", options)?.backend;
    let mut split = SplitBackend::new(processor, backend, Share::default());
    let left = experts.unwrap_or(0);
    let found = match layers_asked {
        _ if is_whole => Some(Share { layers: 0, experts: left }),
        GpuLayers::Count(count) => {
            let layers = at_least(layers - count, &cuts)?;
            Some(Share { layers, experts: left })
        }
        GpuLayers::Auto | GpuLayers::All => {
            let room = room(&split, beside);
            let choice = Choice { cuts: &cuts, mixtures: &mixtures, experts, room };
            choice.fastest(&mut split, &whole.tape, size, token_bytes)
        }
    };
    if let Some(share) = found {
        split.cut(share);
        let sized = size(&split)?;
        if layers_asked != GpuLayers::Auto || fits(sized.memory, &split) {
            let of_device = |layer: &&u32| (share.layers..share.experts).contains(*layer);
            let split_layers = LayerSplit {
                on_processor: share.layers,
                on_device: layers - share.layers,
                experts_on_processor: mixtures.iter().filter(of_device).count() as u32,
            };
            let (backend, split) = (Box::new(split), Some(split_layers));
            return Ok(Placed { backend, sized, split });
        }
    }
    // Who checks its memory says what it lacks.
    let [_, backend] = split.into_parts();
    Ok(Placed { backend, sized: whole, split: None })
}

/// Refuses numbers that mean nothing on a device that was named and is no GPU.
fn check_no_gpu(device: &str, options: &EngineOptions) -> Result<(), EngineError> {
    let layers = match options.gpu_layers {
        GpuLayers::Count(count) => Some(("gpu_layers", count)),
        GpuLayers::Auto | GpuLayers::All => None,
    };
    let experts = match options.cpu_moe_layers {
        CpuMoeLayers::Count(count) if count > 0 => Some(("cpu_moe_layers", count)),
        CpuMoeLayers::Auto | CpuMoeLayers::All | CpuMoeLayers::Count(_) => None,
    };
    match layers.or(experts) {
        Some((key, count)) if options.device != "auto" => Err(EngineError::Option(format!(
            "{key} is {count} and the device is {device}, which is no GPU: name one with --device, \
             or leave {key} out"
        ))),
        _ => Ok(()),
    }
}

/// The layers before which experts are asked to be left; `None`: nobody says.
fn experts_left(
    asked: CpuMoeLayers,
    layers: u32,
    mixtures: &[u32],
) -> Result<Option<u32>, EngineError> {
    let asked = match asked {
        CpuMoeLayers::Auto => return Ok(None),
        CpuMoeLayers::All => layers,
        CpuMoeLayers::Count(count) => count.min(layers),
    };
    if asked == 0 || mixtures.first().is_some_and(|&first| first < asked) {
        return Ok(Some(asked));
    }
    Err(EngineError::Option(match mixtures.first() {
        None => {
            "cpu_moe_layers leaves experts to the processor, and this model has none: leave it \
                 out, or leave it layers with gpu_layers"
                .to_owned()
        }
        Some(first) => format!(
            "cpu_moe_layers is {asked}, and the first {first} layers of this model have no \
             experts: choose more than {first}"
        ),
    }))
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

/// Where a model can be cut.
struct Choice<'a> {
    cuts: &'a [u32],
    mixtures: &'a [u32],
    /// Before which layers experts are left anyway; `None`: as is faster.
    experts: Option<u32>,
    /// Bytes of the device that the model may take.
    room: u64,
}

impl Choice<'_> {
    /// The share that fits and takes a token the least time.
    fn fastest(
        &self,
        split: &mut SplitBackend,
        tape: &Tape,
        size: &Size<'_>,
        token_bytes: &TokenBytes<'_>,
    ) -> Option<Share> {
        let mut fits: Vec<Share> = Vec::new();
        if self.experts.is_none() {
            fits.extend(self.fewest(split, &self.of_layers(0), size));
        }
        if !self.mixtures.is_empty() && self.experts != Some(0) {
            let with_experts = match self.experts {
                Some(experts) => vec![Share { layers: 0, experts }],
                None => {
                    let left = self.mixtures.iter();
                    left.map(|layer| Share { layers: 0, experts: layer + 1 }).collect()
                }
            };
            // Where all experts are not enough, layers as well.
            let all = with_experts.last().map_or(0, |share| share.experts);
            let found = self.fewest(split, &with_experts, size);
            fits.extend(found.or_else(|| self.fewest(split, &self.of_layers(all), size)));
        } else if self.experts.is_some() {
            fits.extend(self.fewest(split, &self.of_layers(0), size));
        }
        if fits.len() < 2 {
            return fits.pop();
        }
        let rates = split.read_rates();
        let seconds = |share: &Share| seconds_of(tape, *share, rates, token_bytes);
        fits.into_iter().min_by(|a, b| seconds(a).total_cmp(&seconds(b)))
    }

    fn of_layers(&self, experts: u32) -> Vec<Share> {
        self.cuts.iter().map(|&layers| Share { layers, experts }).collect()
    }

    /// The share that leaves the least to the processor of those that fit; each leaves more than
    /// the one before.
    fn fewest(&self, split: &mut SplitBackend, shares: &[Share], size: &Size<'_>) -> Option<Share> {
        shares[shares.partition_point(|&share| {
            split.cut(share);
            size(split).map_or(true, |sized| sized.memory.device_bytes() > self.room)
        })..]
            .first()
            .copied()
    }
}

/// What a device has for a model that is split, beside what else is loaded there; none where it
/// does not say how much it has.
fn room(split: &SplitBackend, beside: ModelMemory) -> u64 {
    let own = split.own_memory().unwrap_or(0);
    (own - own / RESERVE_PART).saturating_sub(beside.device_bytes())
}

/// About how long a token takes at best: what each device reads, at the rate at which it does, and
/// the way from one to the other. A device whose rate nobody knows is as fast as can be.
fn seconds_of(
    tape: &Tape,
    share: Share,
    rates: [Option<f64>; 2],
    token_bytes: &TokenBytes<'_>,
) -> f64 {
    let Ok(parts) = cut(tape, share) else { return f64::INFINITY };
    let turns: usize = parts.iter().map(|part| part.segments().len()).sum();
    let read = parts.iter().zip(rates).map(|(part, rate)| {
        let bytes = token_bytes(part).unwrap_or(u64::MAX) as f64;
        rate.map_or(0.0, |rate| bytes / rate)
    });
    read.sum::<f64>() + (turns - 1) as f64 * CROSSING.as_secs_f64()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use models::LoadSettings;
    use testkit::tiny_model::TinyModel;

    use super::*;
    use crate::StepWork;
    use crate::tensors::Tensors;

    #[test]
    fn crossings_and_what_is_read_decide_between_experts_and_layers() {
        let model = TinyModel { layers: 4, experts: 16, ..TinyModel::default() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mixture.gguf");
        std::fs::write(&path, model.to_bytes()).unwrap();
        let file = weights::open(&path).unwrap();
        let spec = models::read_spec(&file, &LoadSettings::default()).unwrap();
        let tape = models::lower(&spec).unwrap();
        let tensors = Tensors::of(&file);
        let token_bytes = |tape: &Tape| Ok(StepWork::of(tape, &tensors, 0)?.weights_bytes);
        let seconds = |share, rate| seconds_of(&tape, share, [Some(rate), None], &token_bytes);
        let layers = |rate| seconds(Share { layers: 2, experts: 0 }, rate);
        let experts = |rate| seconds(Share { layers: 0, experts: 2 }, rate);
        assert!(experts(1e6) < layers(1e6), "{} and {}", experts(1e6), layers(1e6));
        assert!(experts(1e12) > layers(1e12), "{} and {}", experts(1e12), layers(1e12));
        // Of one border, and of two for each layer.
        assert!((layers(1e15) - CROSSING.as_secs_f64()).abs() < 1e-9);
        assert!((experts(1e15) - 4.0 * CROSSING.as_secs_f64()).abs() < 1e-9);
    }

    #[test]
    fn a_number_of_layers_is_kept_or_fewer() {
        let cuts = [1, 2, 5];
        let at = |layers| at_least(layers, &cuts).map_err(|error| error.to_string());
        assert_eq!([at(1), at(2), at(3), at(5)], [Ok(1), Ok(2), Ok(5), Ok(5)]);
        assert!(at(6).is_err_and(|text| text.contains("6 layers to the processor")));
    }

    #[test]
    fn experts_are_of_layers_that_have_some() {
        let left = |asked, mixtures: &[u32]| {
            experts_left(asked, 4, mixtures).map_err(|error| error.to_string())
        };
        assert_eq!(left(CpuMoeLayers::Auto, &[]), Ok(None));
        assert_eq!(left(CpuMoeLayers::All, &[1, 2, 3]), Ok(Some(4)));
        assert_eq!(left(CpuMoeLayers::Count(0), &[]), Ok(Some(0)));
        assert_eq!(left(CpuMoeLayers::Count(99), &[1, 2, 3]), Ok(Some(4)));
        assert!(left(CpuMoeLayers::Count(2), &[]).is_err_and(|text| text.contains("has none")));
        let dense = left(CpuMoeLayers::Count(1), &[1, 2, 3]);
        assert!(dense.is_err_and(|text| text.contains("choose more than 1")));
    }

    #[test]
    fn a_split_says_how_many_layers_are_where() {
        let text = |on_processor, on_device, experts_on_processor| {
            LayerSplit { on_processor, on_device, experts_on_processor }.to_string()
        };
        assert_eq!(text(28, 52, 0), "28 of 80 layers on the processor, 52 on the GPU");
        let experts = "the experts of 20 of 48 layers on the processor, all else on the GPU";
        assert_eq!(text(0, 48, 20), experts);
        let both =
            "2 of 48 layers and the experts of 46 others on the processor, all else on the GPU";
        assert_eq!(text(2, 46, 46), both);
    }
}
