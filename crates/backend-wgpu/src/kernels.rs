//! Which kernels are there, and how do they become pipelines? WGSL of `kernels/`, with constants.
//!
//! A kernel's text is its constants, the files it needs (`*.wgsli`) and its own file, one after the
//! other. Pipelines are made when a model is loaded and kept as long as the device is open.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{
    BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType,
    BufferBindingType, ComputePipeline, ComputePipelineDescriptor, ErrorFilter,
    PipelineCompilationOptions, PipelineLayout, PipelineLayoutDescriptor, ShaderModule,
    ShaderModuleDescriptor, ShaderRuntimeChecks, ShaderSource, ShaderStages,
};

use crate::adapters::{FOR_FRAGMENTS, IMMEDIATE_BYTES, wait};
use crate::attention::{self, Sums, Turning};
use crate::carried::delta_columns;
use crate::experts::EXPERTS_MAX;
use crate::fragments::{self, Fragments};
use crate::gpu::{Gpu, WgpuError};
use crate::packing::Form;
use crate::pipeline_cache::PipelineCache;
use crate::spirv::{self, IN_ORDER, Loops, ResultsOrder};

/// A kernel and the constants that it is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kernel {
    Embed(Form),
    /// Of so many tokens at once.
    Linear(Form, u32),
    LinearTiled(Form),
    /// By matrix units, of so many tokens at once.
    LinearUnits(Form, u32),
    LinearUnitsTiled(Form, UnitsTile),
    /// The same of an arranged form.
    LinearStream(Form, u32),
    HeadLinear(Form),
    Experts(Form),
    Route,
    Combine,
    RmsNorm,
    LayerNorm,
    Elementwise,
    CopyColumns,
    Rotate,
    /// With heads of so many elements, as the next.
    Rotary(u32),
    /// And so many of them at once.
    PagedAttention(u32, u32),
    /// By matrix units.
    AttentionUnits(u32, Turning, Sums),
    /// What the former left of each block.
    AttentionAdd(u32),
    SelectRows,
    Largest,
    LowRankDown,
    LowRankUp,
    PoolRows,
    /// Of so many taps.
    CausalConv(u32),
    /// With keys of so many elements.
    GatedDelta(u32),
    GatedDeltaKeep,
    CarriedCopy,
}

/// Tokens that a launch of [`Kernel::Linear`] takes at once.
pub(crate) const LINEAR_TOKENS: [u32; 3] = [1, 2, 4];
/// Rows of one of its workgroups.
pub(crate) const LINEAR_ROWS: u32 = 8;

/// Tokens that launches of [`Kernel::LinearUnits`] and [`Kernel::LinearStream`] take at once.
pub(crate) const UNITS_TOKENS: [u32; 3] = [1, 8, 16];
/// Rows of a workgroup of the former.
pub(crate) const UNITS_ROWS: u32 = 32;

/// Tiles of 16 rows that a workgroup of [`Kernel::LinearStream`] has at once: of one token, inputs
/// are few; those of more are to be used twice.
pub(crate) fn stream_tiles(tokens: u32) -> u32 {
    if tokens == 1 { 1 } else { 2 }
}

/// What a workgroup of [`Kernel::LinearUnitsTiled`] has, and how it is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UnitsTile {
    Small,
    Large,
}

impl UnitsTile {
    /// Rows and tokens.
    pub(crate) fn size(self) -> [u32; 2] {
        match self {
            Self::Small => [64; 2],
            Self::Large => [128; 2],
        }
    }

    /// Times 32 lanes, and products of each below and beside one another.
    fn shares(self) -> [u32; 3] {
        match self {
            Self::Small => [4, 2, 2],
            Self::Large => [8, 4, 2],
        }
    }
}

/// A kernel's text, for whoever checks or translates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSource {
    pub name: String,
    pub wgsl: String,
}

/// All kernels in all forms, with heads of some sizes: those for any device.
pub fn every_kernel() -> Vec<KernelSource> {
    let mut kernels = vec![
        Kernel::Route,
        Kernel::Combine,
        Kernel::RmsNorm,
        Kernel::LayerNorm,
        Kernel::Elementwise,
        Kernel::CopyColumns,
        Kernel::Rotate,
        Kernel::SelectRows,
        Kernel::Largest,
        Kernel::LowRankDown,
        Kernel::LowRankUp,
        Kernel::PoolRows,
        Kernel::CausalConv(1),
        Kernel::CausalConv(4),
        Kernel::GatedDelta(24),
        Kernel::GatedDelta(128),
        Kernel::GatedDeltaKeep,
        Kernel::CarriedCopy,
    ];
    for form in Form::ALL {
        kernels.extend([Kernel::Embed(form), Kernel::LinearTiled(form)]);
        kernels.extend([Kernel::HeadLinear(form), Kernel::Experts(form)]);
        kernels.extend(LINEAR_TOKENS.map(|tokens| Kernel::Linear(form, tokens)));
    }
    for head_dim in [22, 64, 80, 128, 256, 576] {
        kernels.push(Kernel::Rotary(head_dim));
        kernels.extend([1, 2, 3, 4].map(|heads| Kernel::PagedAttention(head_dim, heads)));
    }
    kernels.extend(attention::every_kernel());
    sources(kernels, false)
}

/// Those that differ where a device has matrix units.
pub fn every_kernel_of_matrix_units() -> Vec<KernelSource> {
    let forms = Form::ALL.into_iter().filter(|form| form.fits_units());
    let of_form = |form| {
        let few = UNITS_TOKENS.map(|tokens| Kernel::LinearUnits(form, tokens));
        few.into_iter().chain(tiled(form)).chain([Kernel::SelectRows])
    };
    let arranged = Form::ARRANGED.into_iter().flat_map(|form| {
        streamed(form).into_iter().chain(tiled(form)).chain([Kernel::Embed(form)])
    });
    let attention = attention::every_kernel();
    let kernels = forms.flat_map(of_form).chain(arranged).chain(attention);
    let mut kernels = sources(kernels.collect(), true);
    kernels.push(KernelSource { name: "probe".to_owned(), wgsl: PROBE.concat() });
    kernels
}

fn streamed(form: Form) -> [Kernel; 3] {
    UNITS_TOKENS.map(|tokens| Kernel::LinearStream(form, tokens))
}

fn tiled(form: Form) -> [Kernel; 2] {
    [UnitsTile::Small, UnitsTile::Large].map(|tile| Kernel::LinearUnitsTiled(form, tile))
}

fn sources(kernels: Vec<Kernel>, has_units: bool) -> Vec<KernelSource> {
    let source =
        |kernel: Kernel| KernelSource { name: kernel.name(), wgsl: kernel.wgsl(has_units) };
    kernels.into_iter().map(source).collect()
}

/// Blocks of positions that a workgroup takes at once: what it keeps of four heads is below 16 KiB.
fn attention_parts(head_dim: u32) -> u32 {
    match head_dim {
        0..=128 => 8,
        129..=256 => 4,
        _ => 2,
    }
}

/// Chunks of a product that are under way: as many as registers hold with the inputs of so many
/// tokens.
fn turns_ahead(tokens: u32) -> u32 {
    match tokens {
        1 => 4,
        2..=8 => 2,
        _ => 1,
    }
}

macro_rules! kernel_file {
    ($name:literal) => {
        include_str!(concat!("../kernels/", $name))
    };
}

const ENABLE_UNITS: &str = "enable f16;\nenable wgpu_cooperative_matrix;\n";
const FRAGMENTS: &str = kernel_file!("fragments.wgsli");
/// The kernel of `fragments`, which asks where lanes have their elements.
pub(crate) const PROBE: [&str; 4] = [
    ENABLE_UNITS,
    "@group(0) @binding(4) var<storage, read_write> work: array<f32>;
@group(0) @binding(8) var<storage, read_write> rounded: array<f16>;\n",
    FRAGMENTS,
    kernel_file!("linear.probe.wgsl"),
];

impl Kernel {
    /// Whether some of its functions get their bodies in SPIR-V.
    fn is_filled(self) -> bool {
        match self {
            Self::LinearStream(..) | Self::AttentionUnits(..) => true,
            Self::LinearUnitsTiled(form, _) => form.is_arranged(),
            _ => false,
        }
    }

    /// What the driver is told of its loops, where it is filled: as it measured best.
    fn loops(self) -> Loops {
        match self {
            Self::AttentionUnits(..) => Loops::WrittenOut,
            _ => Loops::AsTheyAre,
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Embed(form) => format!("embed {}", form.name()),
            Self::Linear(form, tokens) => format!("linear {} x{tokens}", form.name()),
            Self::LinearTiled(form) => format!("linear tiled {}", form.name()),
            Self::LinearUnits(form, tokens) => format!("linear units {} x{tokens}", form.name()),
            Self::LinearUnitsTiled(form, tile) => {
                format!("linear units tiled {} {tile:?}", form.name())
            }
            Self::LinearStream(form, tokens) => format!("linear stream {} x{tokens}", form.name()),
            Self::HeadLinear(form) => format!("head_linear {}", form.name()),
            Self::Experts(form) => format!("experts {}", form.name()),
            Self::Route => "experts route".to_owned(),
            Self::Combine => "experts combine".to_owned(),
            Self::RmsNorm => "rms_norm".to_owned(),
            Self::LayerNorm => "layer_norm".to_owned(),
            Self::Elementwise => "activate".to_owned(),
            Self::CopyColumns => "copy_columns".to_owned(),
            Self::Rotate => "rotary rotate".to_owned(),
            Self::Rotary(head_dim) => format!("rotary {head_dim}"),
            Self::PagedAttention(head_dim, heads) => format!("paged_attention {head_dim} x{heads}"),
            Self::AttentionUnits(head_dim, turning, sums) => {
                format!("paged_attention units {head_dim} {turning:?} {sums:?}")
            }
            Self::AttentionAdd(head_dim) => format!("paged_attention add {head_dim}"),
            Self::SelectRows => "select_rows".to_owned(),
            Self::Largest => "sample_rows largest".to_owned(),
            Self::LowRankDown => "low_rank down".to_owned(),
            Self::LowRankUp => "low_rank up".to_owned(),
            Self::PoolRows => "pool_rows".to_owned(),
            Self::CausalConv(taps) => format!("causal_conv x{taps}"),
            Self::GatedDelta(keys) => format!("gated_delta {keys}"),
            Self::GatedDeltaKeep => "gated_delta keep".to_owned(),
            Self::CarriedCopy => "carried copy".to_owned(),
        }
    }

    fn constants(self) -> String {
        let mut text = String::new();
        let mut add = |constants: &[(&str, u32)]| {
            for (name, value) in constants {
                let _ = writeln!(text, "const {name} = {value}u;");
            }
        };
        match self {
            Self::Embed(form)
            | Self::LinearTiled(form)
            | Self::HeadLinear(form)
            | Self::Experts(form) => return form.constants(),
            Self::Linear(form, tokens) => {
                add(&[("TOKENS", tokens)]);
                return form.constants() + &text;
            }
            Self::LinearUnits(form, tokens) => {
                add(&[("WARPS", 8), ("TOKENS", tokens)]);
                return form.constants() + &text;
            }
            Self::LinearStream(form, tokens) => {
                let (tiles, ahead) = (stream_tiles(tokens), turns_ahead(tokens));
                add(&[("TOKENS", tokens), ("TILES", tiles), ("AHEAD", ahead)]);
                return form.constants() + &text;
            }
            Self::LinearUnitsTiled(form, tile) => {
                let ([rows, tokens], [warps, down, across]) = (tile.size(), tile.shares());
                add(&[("ROWS", rows), ("TOKENS", tokens)]);
                add(&[("WARPS", warps), ("DOWN", down), ("ACROSS", across)]);
                return form.constants() + &text;
            }
            Self::RmsNorm | Self::LayerNorm | Self::LowRankDown | Self::Largest => {
                add(&[("THREADS", 256)]);
            }
            Self::Route => add(&[("THREADS", 64), ("EXPERTS_MAX", EXPERTS_MAX)]),
            Self::Rotary(head_dim) => add(&[("THREADS", 64), ("DIM", head_dim)]),
            Self::PagedAttention(head_dim, heads) => {
                let parts = attention_parts(head_dim);
                add(&[("HEADS", heads), ("PARTS", parts), ("DIM", head_dim)]);
            }
            Self::AttentionUnits(head_dim, turning, sums) => {
                add(&[("DIM", head_dim)]);
                let _ = writeln!(text, "const TURNS = {};", turning == Turning::Here);
                let _ = writeln!(text, "const BY_BLOCKS = {};", sums == Sums::ByBlocks);
            }
            Self::AttentionAdd(head_dim) => add(&[("DIM", head_dim)]),
            Self::CausalConv(taps) => add(&[("TAPS", taps)]),
            Self::GatedDelta(keys) => add(&[("KEYS", keys), ("COLUMNS", delta_columns(keys))]),
            Self::Combine
            | Self::GatedDeltaKeep
            | Self::CarriedCopy
            | Self::Elementwise
            | Self::CopyColumns
            | Self::Rotate
            | Self::LowRankUp
            | Self::PoolRows
            | Self::SelectRows => {}
        }
        text
    }

    fn files(self, has_units: bool) -> &'static [&'static str] {
        const PACKED: &str = kernel_file!("packed.wgsli");
        const OUTPUTS: &str = kernel_file!("outputs.wgsli");
        const LINEAR_OUTPUTS: &str = kernel_file!("linear_outputs.wgsli");
        const UNITS: &str = kernel_file!("matrix_units.wgsli");
        const ARRANGED: &str = kernel_file!("arranged.wgsli");
        const TILED: &str = kernel_file!("linear.units.tiled.wgsl");
        const SUM: &str = kernel_file!("sum.wgsli");
        const CARRIED: &str = kernel_file!("carried.wgsli");
        match self {
            Self::Embed(_) => &[PACKED, kernel_file!("embed.wgsl")],
            Self::Linear(..) => &[PACKED, OUTPUTS, LINEAR_OUTPUTS, kernel_file!("linear.wgsl")],
            Self::LinearTiled(_) => {
                &[PACKED, OUTPUTS, LINEAR_OUTPUTS, kernel_file!("linear.tiled.wgsl")]
            }
            Self::LinearUnits(..) => {
                &[PACKED, OUTPUTS, UNITS, LINEAR_OUTPUTS, kernel_file!("linear.units.wgsl")]
            }
            Self::LinearUnitsTiled(form, _) if form.is_arranged() => &[
                PACKED,
                OUTPUTS,
                UNITS,
                LINEAR_OUTPUTS,
                FRAGMENTS,
                ARRANGED,
                kernel_file!("tiled_rows.arranged.wgsli"),
                TILED,
            ],
            Self::LinearUnitsTiled(..) => {
                const ROWS: &str = kernel_file!("tiled_rows.wgsli");
                &[PACKED, OUTPUTS, UNITS, LINEAR_OUTPUTS, ROWS, TILED]
            }
            Self::LinearStream(..) => &[
                PACKED,
                OUTPUTS,
                LINEAR_OUTPUTS,
                FRAGMENTS,
                ARRANGED,
                kernel_file!("linear.units.stream.wgsl"),
            ],
            Self::HeadLinear(_) => &[PACKED, kernel_file!("head_linear.wgsl")],
            Self::Experts(_) => &[PACKED, OUTPUTS, kernel_file!("experts.wgsl")],
            Self::Route => &[kernel_file!("experts.route.wgsl")],
            Self::Combine => &[kernel_file!("experts.combine.wgsl")],
            Self::RmsNorm => &[SUM, kernel_file!("rms_norm.wgsl")],
            Self::LayerNorm => &[SUM, kernel_file!("layer_norm.wgsl")],
            Self::Elementwise => &[CAP, OUTPUTS, kernel_file!("activate.wgsl")],
            Self::CopyColumns => &[kernel_file!("copy_columns.wgsl")],
            Self::Rotate => &[TURNS, kernel_file!("rotary.rotate.wgsl")],
            Self::Rotary(_) => &[SUM, PAGES, TURNS, kernel_file!("rotary.wgsl")],
            Self::PagedAttention(..) | Self::AttentionUnits(..) => self.attention_files(has_units),
            Self::AttentionAdd(_) => &[kernel_file!("paged_attention.add.wgsl")],
            Self::SelectRows => &[kernel_file!("select_rows.wgsl")],
            Self::Largest => &[kernel_file!("sample_rows.largest.wgsl")],
            Self::LowRankDown => &[SUM, kernel_file!("low_rank.down.wgsl")],
            Self::LowRankUp => &[kernel_file!("low_rank.up.wgsl")],
            Self::PoolRows => &[kernel_file!("pool_rows.wgsl")],
            Self::CausalConv(_) => &[CARRIED, kernel_file!("causal_conv.wgsl")],
            Self::GatedDelta(_) => &[CARRIED, kernel_file!("gated_delta.wgsl")],
            Self::GatedDeltaKeep => &[CARRIED, kernel_file!("gated_delta.keep.wgsl")],
            Self::CarriedCopy => &[kernel_file!("gated_delta.copy.wgsl")],
        }
    }

    fn attention_files(self, has_units: bool) -> &'static [&'static str] {
        const IN_F32: &str = kernel_file!("paged_attention.wgsl");
        const BY_UNITS: &str = kernel_file!("paged_attention.units.wgsl");
        const UNITS: &str = kernel_file!("attention_units.wgsli");
        const EMULATED: &str = kernel_file!("attention_units.emulated.wgsli");
        match self {
            Self::PagedAttention(_, 1) => &[CAP, PAGES, kernel_file!("heads.one.wgsli"), IN_F32],
            Self::PagedAttention(_, 2) => &[CAP, PAGES, kernel_file!("heads.two.wgsli"), IN_F32],
            Self::PagedAttention(_, 3) => &[CAP, PAGES, kernel_file!("heads.three.wgsli"), IN_F32],
            Self::PagedAttention(..) => &[CAP, PAGES, kernel_file!("heads.four.wgsli"), IN_F32],
            _ if has_units => &[CAP, PAGES, TURNS, FRAGMENTS, UNITS, BY_UNITS],
            _ => &[CAP, PAGES, TURNS, EMULATED, BY_UNITS],
        }
    }

    pub(crate) fn wgsl(self, has_units: bool) -> String {
        let mut text = String::new();
        if has_units {
            text.push_str(ENABLE_UNITS);
        }
        text.push_str(&self.constants());
        text.push_str(kernel_file!("prelude.wgsli"));
        let into_work = [kernel_file!("put.wgsli"), kernel_file!("put.rounded.wgsli")];
        text.push_str(into_work[usize::from(has_units)]);
        self.files(has_units).iter().for_each(|file| text.push_str(file));
        text
    }
}

const PAGES: &str = kernel_file!("pages.wgsli");
const CAP: &str = kernel_file!("cap.wgsli");
const TURNS: &str = kernel_file!("turns.wgsli");

/// A device with the pipelines that were made for it.
pub(crate) struct Pipelines {
    gpu: Arc<Gpu>,
    pub(crate) bindings: BindGroupLayout,
    layout: PipelineLayout,
    made: Mutex<BTreeMap<Kernel, ComputePipeline>>,
    pub(crate) has_units: bool,
    /// And kernels that put matrices together out of lanes' own words.
    pub(crate) has_fragments: bool,
    /// Where lanes have their elements of results, if that is known.
    results: Option<ResultsOrder>,
    /// Kernels attend by matrix units, or by what stands in for those.
    pub(crate) attends_by_units: bool,
    cache: Option<PipelineCache>,
    /// Pipelines that the cache's file may lack.
    unkept: AtomicBool,
}

/// Bindings 0 to 3 are read, the others written; see `kernels/prelude.wgsli`.
pub(crate) const BINDINGS: u32 = 8;
/// With activations in f16: `kernels/put.rounded.wgsli`.
pub(crate) const BINDINGS_OF_UNITS: u32 = 11;
pub(crate) const FIRST_WRITTEN: u32 = 4;

impl Pipelines {
    pub(crate) fn new(gpu: &Arc<Gpu>, has_units: bool) -> Self {
        let entry = |binding| BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty: BufferBindingType::Storage { read_only: binding < FIRST_WRITTEN },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let count = if has_units { BINDINGS_OF_UNITS } else { BINDINGS };
        let entries: Vec<_> = (0..count).map(entry).collect();
        let bindings = gpu.device.create_bind_group_layout(&BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let layout = gpu.device.create_pipeline_layout(&PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: IMMEDIATE_BYTES,
        });
        let mut pipelines = Self {
            gpu: Arc::clone(gpu),
            bindings,
            layout,
            made: Mutex::default(),
            has_units,
            has_fragments: false,
            results: None,
            attends_by_units: false,
            cache: PipelineCache::open(gpu),
            unkept: AtomicBool::new(false),
        };
        let may = has_units && gpu.device.features().contains(FOR_FRAGMENTS);
        if may {
            let said = Fragments::ask(gpu, &pipelines);
            pipelines.has_fragments = said.are_as_expected;
            pipelines.results = said.results;
            pipelines.attends_by_units = said.results.is_some();
        }
        pipelines
    }

    pub(crate) fn bindings_count(&self) -> u32 {
        if self.has_units { BINDINGS_OF_UNITS } else { BINDINGS }
    }

    /// Of a kernel whose functions get their bodies in SPIR-V.
    ///
    /// # Errors
    /// What is wrong with its text.
    pub(crate) fn filled(
        &self,
        name: &str,
        wgsl: &str,
        loops: Loops,
    ) -> Result<ComputePipeline, WgpuError> {
        let order = self.results.unwrap_or(IN_ORDER);
        let words = spirv::filled(wgsl, &order, loops)
            .map_err(|text| WgpuError(format!("{name}: {text}")))?;
        // SAFETY: as of the other kernels below; what is filled in computes and touches no memory.
        let module = unsafe {
            self.gpu.device.create_shader_module_passthrough(fragments::passed_on(words))
        };
        Ok(self.pipeline(name, &module))
    }

    /// # Errors
    /// The kernel's name and what the driver's compiler says of it.
    pub(crate) fn get(&self, kernel: Kernel) -> Result<ComputePipeline, WgpuError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(&kernel) {
            return Ok(pipeline.clone());
        }
        let name = kernel.name();
        let scope = self.gpu.device.push_error_scope(ErrorFilter::Validation);
        let wgsl = kernel.wgsl(self.has_units);
        let pipeline = if self.has_units && kernel.is_filled() {
            self.filled(&name, &wgsl, kernel.loops())?
        } else {
            self.checked(&name, &wgsl)
        };
        if let Some(error) = wait(scope.pop()) {
            let device = &self.gpu.facts.name;
            return Err(WgpuError(format!("{device} refuses the kernel {name}: {error}")));
        }
        made.insert(kernel, pipeline.clone());
        self.unkept.store(true, Ordering::Relaxed);
        Ok(pipeline)
    }

    fn checked(&self, name: &str, wgsl: &str) -> ComputePipeline {
        let descriptor =
            ShaderModuleDescriptor { label: Some(name), source: ShaderSource::Wgsl(wgsl.into()) };
        // SAFETY: our own kernels; they end, and what they index is within the pieces that the
        // program binds: sizes were worked out by `lowering`, inputs checked by the audit.
        let module = unsafe {
            let unchecked = ShaderRuntimeChecks::unchecked();
            self.gpu.device.create_shader_module_trusted(descriptor, unchecked)
        };
        self.pipeline(name, &module)
    }

    fn pipeline(&self, name: &str, module: &ShaderModule) -> ComputePipeline {
        self.gpu.device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&self.layout),
            module,
            entry_point: Some("main"),
            compilation_options: PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..PipelineCompilationOptions::default()
            },
            cache: self.cache.as_ref().map(|cache| &cache.cache),
        })
    }

    /// Keeps what was made for the next start.
    pub(crate) fn keep(&self) {
        if self.unkept.swap(false, Ordering::Relaxed)
            && let Some(cache) = &self.cache
        {
            cache.keep();
        }
    }
}

/// Matrix units are behind a feature that wgpu still tries out.
pub(crate) fn experimental_features() -> wgpu::ExperimentalFeatures {
    // SAFETY: used by kernels of our own only, which the driver takes as checked anyway.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// The driver's own form of kernels, begun with what is `known` of an earlier start.
pub(crate) fn driver_cache(gpu: &Gpu, known: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor {
        label: Some("pelton"),
        data: known,
        // Of another driver: begun anew.
        fallback: true,
    };
    // SAFETY: the bytes are those that a driver of this adapter gave, by the digest of their file.
    unsafe { gpu.device.create_pipeline_cache(&descriptor) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// No driver here has matrix units, so nothing else writes these.
    #[test]
    fn kernels_with_functions_to_fill_become_spirv() {
        let streams = Form::ARRANGED.into_iter().flat_map(streamed);
        let tiled = Form::ARRANGED.into_iter().flat_map(tiled);
        let mut count = 0;
        for kernel in streams.chain(tiled).chain(attention::every_kernel()) {
            if kernel.is_filled() {
                let words = spirv::filled(&kernel.wgsl(true), &IN_ORDER, kernel.loops());
                assert!(words.unwrap().len() > 1000, "{}", kernel.name());
                count += 1;
            }
        }
        assert_eq!(count, 4 * 3 + 4 * 2 + 2 * 4);
    }
}
