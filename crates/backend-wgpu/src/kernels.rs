//! Which kernels are there, and how do they become pipelines? WGSL of `kernels/`, with constants.
//!
//! A kernel's text is its constants, the files it needs (`*.wgsli`) and its own file, one after the
//! other. Pipelines are made when a model is loaded and kept as long as the device is open.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{
    BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType,
    BufferBindingType, ComputePipeline, ComputePipelineDescriptor, ErrorFilter,
    PipelineCompilationOptions, PipelineLayout, PipelineLayoutDescriptor, ShaderModuleDescriptor,
    ShaderRuntimeChecks, ShaderSource, ShaderStages,
};

use crate::adapters::{IMMEDIATE_BYTES, wait};
use crate::gpu::{Gpu, WgpuError};
use crate::packing::Form;

/// A kernel and the constants that it is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kernel {
    Embed(Form),
    /// Of so many tokens at once.
    Linear(Form, u32),
    LinearTiled(Form),
    RmsNorm,
    /// With heads of so many elements, as the next.
    Rotary(u32),
    PagedAttention(u32),
    SelectRows,
    SoftCap,
}

/// Tokens that a launch of [`Kernel::Linear`] takes at once.
pub(crate) const LINEAR_TOKENS: [u32; 3] = [1, 2, 4];
/// Rows of one of its workgroups.
pub(crate) const LINEAR_ROWS: u32 = 8;

/// A kernel's text, for whoever checks or translates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSource {
    pub name: String,
    pub wgsl: String,
}

/// All kernels in all forms, with heads of some sizes.
pub fn every_kernel() -> Vec<KernelSource> {
    let mut kernels = vec![Kernel::RmsNorm, Kernel::SelectRows, Kernel::SoftCap];
    for form in Form::ALL {
        kernels.extend([Kernel::Embed(form), Kernel::LinearTiled(form)]);
        kernels.extend(LINEAR_TOKENS.map(|tokens| Kernel::Linear(form, tokens)));
    }
    for head_dim in [22, 64, 80, 128, 256, 576] {
        kernels.extend([Kernel::Rotary(head_dim), Kernel::PagedAttention(head_dim)]);
    }
    let source = |kernel: Kernel| KernelSource { name: kernel.name(), wgsl: kernel.wgsl() };
    kernels.into_iter().map(source).collect()
}

macro_rules! kernel_file {
    ($name:literal) => {
        include_str!(concat!("../kernels/", $name))
    };
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Embed(form) => format!("embed {}", form.name()),
            Self::Linear(form, tokens) => format!("linear {} x{tokens}", form.name()),
            Self::LinearTiled(form) => format!("linear tiled {}", form.name()),
            Self::RmsNorm => "rms_norm".to_owned(),
            Self::Rotary(head_dim) => format!("rotary {head_dim}"),
            Self::PagedAttention(head_dim) => format!("paged_attention {head_dim}"),
            Self::SelectRows => "select_rows".to_owned(),
            Self::SoftCap => "soft_cap".to_owned(),
        }
    }

    fn constants(self) -> String {
        let mut text = String::new();
        let mut add = |name: &str, value: u32| {
            let _ = writeln!(text, "const {name} = {value}u;");
        };
        match self {
            Self::Embed(form) | Self::LinearTiled(form) => return form.constants(),
            Self::Linear(form, tokens) => {
                add("TOKENS", tokens);
                return form.constants() + &text;
            }
            Self::RmsNorm => add("THREADS", 256),
            Self::Rotary(head_dim) | Self::PagedAttention(head_dim) => {
                add("THREADS", 64);
                add("DIM", head_dim);
            }
            Self::SelectRows | Self::SoftCap => {}
        }
        text
    }

    fn files(self) -> &'static [&'static str] {
        const PACKED: &str = kernel_file!("packed.wgsli");
        const OUTPUTS: &str = kernel_file!("outputs.wgsli");
        const LINEAR_OUTPUTS: &str = kernel_file!("linear_outputs.wgsli");
        const SUM: &str = kernel_file!("sum.wgsli");
        const CAP: &str = kernel_file!("cap.wgsli");
        match self {
            Self::Embed(_) => &[PACKED, kernel_file!("embed.wgsl")],
            Self::Linear(..) => &[PACKED, OUTPUTS, LINEAR_OUTPUTS, kernel_file!("linear.wgsl")],
            Self::LinearTiled(_) => {
                &[PACKED, OUTPUTS, LINEAR_OUTPUTS, kernel_file!("linear.tiled.wgsl")]
            }
            Self::RmsNorm => &[SUM, kernel_file!("rms_norm.wgsl")],
            Self::Rotary(_) => &[SUM, kernel_file!("rotary.wgsl")],
            Self::PagedAttention(_) => &[SUM, CAP, kernel_file!("paged_attention.wgsl")],
            Self::SelectRows => &[kernel_file!("select_rows.wgsl")],
            Self::SoftCap => &[CAP, kernel_file!("soft_cap.wgsl")],
        }
    }

    pub(crate) fn wgsl(self) -> String {
        let mut text = self.constants();
        text.push_str(kernel_file!("prelude.wgsli"));
        self.files().iter().for_each(|file| text.push_str(file));
        text
    }
}

/// A device with the pipelines that were made for it.
pub(crate) struct Pipelines {
    gpu: Arc<Gpu>,
    pub(crate) bindings: BindGroupLayout,
    layout: PipelineLayout,
    made: Mutex<BTreeMap<Kernel, ComputePipeline>>,
}

/// Bindings 0 to 3 are read, the others written; see `kernels/prelude.wgsli`.
pub(crate) const BINDINGS: u32 = 8;
const FIRST_WRITTEN: u32 = 4;

impl Pipelines {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Self {
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
        let entries: Vec<_> = (0..BINDINGS).map(entry).collect();
        let bindings = gpu.device.create_bind_group_layout(&BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let layout = gpu.device.create_pipeline_layout(&PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: IMMEDIATE_BYTES,
        });
        Self { gpu: Arc::clone(gpu), bindings, layout, made: Mutex::default() }
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
        let descriptor = ShaderModuleDescriptor {
            label: Some(&name),
            source: ShaderSource::Wgsl(kernel.wgsl().into()),
        };
        // SAFETY: our own kernels; they end, and what they index is within the pieces that the
        // program binds: sizes were worked out by `lowering`, inputs checked by the audit.
        let module = unsafe {
            let unchecked = ShaderRuntimeChecks::unchecked();
            self.gpu.device.create_shader_module_trusted(descriptor, unchecked)
        };
        let pipeline = self.gpu.device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&self.layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..PipelineCompilationOptions::default()
            },
            cache: None,
        });
        if let Some(error) = wait(scope.pop()) {
            let device = &self.gpu.facts.name;
            return Err(WgpuError(format!("{device} refuses the kernel {name}: {error}")));
        }
        made.insert(kernel, pipeline.clone());
        Ok(pipeline)
    }
}
