//! Which adapters are there, and what do they lack? The choice of one is made here.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use wgpu::{Backends, CooperativeScalarType, DeviceType, Features, Instance, InstanceDescriptor};

use crate::gpu::WgpuError;
use crate::kernels::{BINDINGS, BINDINGS_OF_UNITS};

/// Through which interface of the system an adapter is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Vulkan,
    Metal,
    /// Direct3D 12, on Windows.
    Dx12,
    /// Whichever there is.
    Any,
}

impl Api {
    /// The name in `--device`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
            Self::Any => "wgpu",
        }
    }

    /// What whoever finds no adapter can do.
    fn remedy(self) -> &'static str {
        match self {
            Self::Metal if !cfg!(target_vendor = "apple") => {
                "Metal is on Macs only; --device vulkan is for other systems"
            }
            Self::Dx12 if !cfg!(windows) => {
                "Direct3D is on Windows only; --device vulkan is for other systems"
            }
            Self::Metal | Self::Dx12 => "install the system's updates, or choose another --device",
            Self::Vulkan | Self::Any => {
                "install the card's graphics driver (on Linux also libvulkan1), or \
                 mesa-vulkan-drivers to compute on the processor"
            }
        }
    }

    fn backends(self) -> Backends {
        match self {
            Self::Vulkan => Backends::VULKAN,
            Self::Metal => Backends::METAL,
            Self::Dx12 => Backends::DX12,
            Self::Any => Backends::VULKAN | Backends::METAL | Backends::DX12,
        }
    }
}

/// What an adapter says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFacts {
    pub name: String,
    pub api: &'static str,
    pub driver: String,
    /// Computed by the processor.
    pub is_software: bool,
    /// Whether device and process share their memory.
    pub is_unified: bool,
    /// Of one binding: larger matrices are split.
    pub binding_bytes: u64,
    pub buffer_bytes: u64,
    /// Kernels that use half precision or subgroups can run.
    pub has_f16: bool,
    pub has_subgroups: bool,
    /// Units that multiply matrices of 16 by 16 in f16 can be used.
    pub has_matrix_units: bool,
    /// Why no model can run there; empty where one can.
    pub missing: Vec<&'static str>,
}

/// What every kernel needs.
pub(crate) const NEEDED: Features = Features::IMMEDIATES;
/// Of a kernel's parameters.
pub(crate) const IMMEDIATE_BYTES: u32 = 128;

/// All adapters of an interface, those a person would choose first.
pub fn adapters(api: Api) -> Vec<AdapterFacts> {
    list(api).iter().map(facts).collect()
}

/// The adapter of this number, as [`adapters`] lists them.
pub(crate) fn choose(api: Api, ordinal: u32) -> Result<wgpu::Adapter, WgpuError> {
    let mut found = list(api);
    let count = found.len();
    if ordinal as usize >= count {
        return Err(WgpuError(match count {
            0 => format!("no {} adapter: {}", api.name(), api.remedy()),
            _ => format!("no {} adapter {ordinal}: there are {count}, from 0 on", api.name()),
        }));
    }
    let adapter = found.swap_remove(ordinal as usize);
    let facts = facts(&adapter);
    if facts.missing.is_empty() {
        return Ok(adapter);
    }
    Err(WgpuError(format!("adapter {} lacks {}", facts.name, facts.missing.join(" and "))))
}

fn list(api: Api) -> Vec<wgpu::Adapter> {
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    descriptor.backends = api.backends();
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = Instance::new(descriptor);
    let mut adapters = wait(instance.enumerate_adapters(api.backends()));
    // Stable: those of a kind stay in the system's order.
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    adapters
}

pub(crate) fn facts(adapter: &wgpu::Adapter) -> AdapterFacts {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let mut missing = Vec::new();
    if !features.contains(NEEDED) || limits.max_immediate_size < IMMEDIATE_BYTES {
        missing.push("immediate data of 128 bytes");
    }
    if limits.max_compute_invocations_per_workgroup < 256
        || limits.max_compute_workgroup_storage_size < 16 << 10
    {
        missing.push("workgroups of 256 invocations with 16 KiB");
    }
    if limits.max_storage_buffers_per_shader_stage < BINDINGS {
        missing.push("eight buffers for a kernel");
    }
    let api = match info.backend {
        wgpu::Backend::Metal => Api::Metal.name(),
        wgpu::Backend::Dx12 => Api::Dx12.name(),
        _ => Api::Vulkan.name(),
    };
    AdapterFacts {
        name: info.name,
        api,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        is_software: info.device_type == DeviceType::Cpu,
        is_unified: matches!(info.device_type, DeviceType::Cpu | DeviceType::IntegratedGpu),
        binding_bytes: limits.max_storage_buffer_binding_size,
        buffer_bytes: limits.max_buffer_size,
        has_f16: features.contains(Features::SHADER_F16),
        has_subgroups: features.contains(Features::SUBGROUP),
        has_matrix_units: has_matrix_units(adapter),
        missing,
    }
}

/// What kernels need that use matrix units.
pub(crate) const FOR_MATRIX_UNITS: Features = Features::SHADER_F16
    .union(Features::SUBGROUP)
    .union(Features::SUBGROUP_BARRIER)
    .union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// And those that put matrices together out of lanes' own words.
pub(crate) const FOR_FRAGMENTS: Features = Features::PASSTHROUGH_SHADERS;

fn has_matrix_units(adapter: &wgpu::Adapter) -> bool {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let is_size = |known: &wgpu::CooperativeMatrixProperties| {
        [known.m_size, known.n_size, known.k_size] == [16; 3]
            && known.ab_type == CooperativeScalarType::F16
            && known.cr_type == CooperativeScalarType::F32
    };
    adapter.features().contains(FOR_MATRIX_UNITS)
        && adapter.cooperative_matrix_properties().iter().any(is_size)
        // Kernels know which 32 invocations work together.
        && [info.subgroup_min_size, info.subgroup_max_size] == [32; 2]
        && limits.max_compute_workgroup_storage_size >= 48 << 10
        && limits.max_storage_buffers_per_shader_stage >= BINDINGS_OF_UNITS
}

/// The value of a future that the driver has ready: on systems that are no browser, all are.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}
