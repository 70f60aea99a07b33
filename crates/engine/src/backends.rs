//! Which devices are there? The one place that names backends.

use std::path::PathBuf;

use backend_cpu::CpuBackend;
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use backend_wgpu::{AdapterFacts, Api, WgpuBackend};
use device::Backend;
use ops::kv_format::KvFormat;

use crate::{EngineError, EngineOptions};

/// Names that `--device` takes; `cuda` is `cuda:0`, and so with the others that have a number.
pub const DEVICES: &[&str] = &[
    "auto",
    "cpu",
    "cuda",
    "cuda:N",
    "dx12",
    "dx12:N",
    "metal",
    "metal:N",
    "reference",
    "vulkan",
    "vulkan:N",
    "wgpu",
    "wgpu:N",
];

/// A device that answered, and how it keeps keys and values.
pub(crate) struct OpenedBackend {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) kv_format: KvFormat,
    /// As plans of memory name it.
    pub(crate) kv_kind: &'static str,
}

/// Whether `--device` takes this name; whether the device is there shows when it is opened.
pub fn is_device_name(name: &str) -> bool {
    let is_numbered = cuda_ordinal(name).is_some() || adapter(name).is_some();
    is_numbered || matches!(name, "auto" | "cpu" | "reference")
}

/// Whether it is one of the devices that have memory of their own, most of them.
pub(crate) fn is_gpu(name: &str) -> bool {
    cuda_ordinal(name).is_some() || adapter(name).is_some()
}

/// What answers under the name of a device, in its own words. Opens it and lets it go again.
///
/// # Errors
/// As when a model is loaded there: what is missing, or in the way.
pub fn probe_device(device: &str) -> Result<String, EngineError> {
    let options = EngineOptions::new(PathBuf::new(), "");
    Ok(open(device, &options)?.backend.name().to_owned())
}

/// What adapters of Vulkan, Metal and Direct3D say of themselves, in the order of their numbers.
/// Looks for them, and opens none.
pub fn adapters() -> Vec<AdapterFacts> {
    [Api::Vulkan, Api::Metal, Api::Dx12].into_iter().flat_map(backend_wgpu::adapters).collect()
}

/// The devices that a name may mean, the fastest first: the next is for a model that the one
/// before cannot take.
pub(crate) fn candidates(name: &str) -> Vec<&str> {
    // Metal, Vulkan and Direct3D are asked for by name: nobody has seen yet on which of their
    // adapters models are faster than on the processor, and some are the processor.
    if name == "auto" { vec!["cuda:0", "cpu"] } else { vec![name] }
}

/// The device of one of the [`candidates`].
///
/// # Errors
/// [`EngineError::Option`] for an unknown name, a device that is not there, or settings that it
/// refuses.
pub(crate) fn open(device: &str, options: &EngineOptions) -> Result<OpenedBackend, EngineError> {
    let kv_format = kv_format(device, options.kv_dtype.as_deref())?;
    let kv_kind = if device == "reference" { "f32" } else { kv_format.name() };
    let isa = options.instruction_set.as_deref();
    let (heaps, allocator) = options.heaps();
    let backend: Box<dyn Backend> = match device {
        "cpu" => Box::new(
            CpuBackend::open(options.threads, isa)
                .map_err(|error| EngineError::Option(error.to_string()))?
                .with_kv_format(kv_format)
                .with_heaps(heaps, allocator),
        ),
        "reference" => Box::new(ReferenceBackend),
        other => match (cuda_ordinal(other), adapter(other)) {
            (Some(ordinal), _) => Box::new(
                CudaBackend::open(ordinal)
                    .map_err(|error| EngineError::Option(error.to_string()))?
                    .with_heaps(heaps, allocator)
                    .with_copies(options.blit_queue)
                    .with_memory_max(options.device_memory_bytes)
                    .with_kv_format(kv_format)
                    .map_err(|error| EngineError::Option(error.to_string()))?,
            ),
            (None, Some((api, ordinal))) => Box::new(
                WgpuBackend::open(api, ordinal)
                    .map_err(|error| EngineError::Option(error.to_string()))?
                    .with_heaps(heaps)
                    .with_memory_max(options.device_memory_bytes),
            ),
            (None, None) => {
                return Err(EngineError::Option(format!(
                    "there is no device `{other}`; devices: {}",
                    DEVICES.join(", ")
                )));
            }
        },
    };
    Ok(OpenedBackend { backend, kv_format, kv_kind })
}

/// The number in `cuda:1`.
fn cuda_ordinal(name: &str) -> Option<u32> {
    numbered(name, "cuda")
}

/// The interface and the number in `vulkan:1`.
fn adapter(name: &str) -> Option<(Api, u32)> {
    let apis = [Api::Vulkan, Api::Metal, Api::Dx12, Api::Any];
    apis.into_iter().find_map(|api| Some((api, numbered(name, api.name())?)))
}

fn numbered(name: &str, kind: &str) -> Option<u32> {
    match name.strip_prefix(kind)? {
        "" => Some(0),
        rest => {
            let digits = rest.strip_prefix(':')?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        }
    }
}

/// The format in which keys and values are kept, by its name in settings.
fn kv_format(device: &str, kv_dtype: Option<&str>) -> Result<KvFormat, EngineError> {
    let is_cuda = cuda_ordinal(device).is_some();
    let is_half = is_cuda || adapter(device).is_some();
    let default = if is_half { KvFormat::F16 } else { KvFormat::default() };
    let Some(name) = kv_dtype else { return Ok(default) };
    if device == "reference" {
        let text = "the reference device keeps keys and values in f32: leave kv_dtype out";
        return Err(EngineError::Option(text.to_owned()));
    }
    let format = KvFormat::from_name(name).ok_or_else(|| {
        let asked: String = name.chars().take(40).collect();
        let known = KvFormat::ALL.map(KvFormat::name).join(", ");
        EngineError::Option(format!("kv_dtype is `{asked}`, it must be one of {known}"))
    })?;
    let is_kept = format == KvFormat::F16 || (is_cuda && format == KvFormat::Int8);
    if is_half && !is_kept {
        let own = if is_cuda { "f16 or int8" } else { "f16" };
        let text = format!(
            "the {device} device keeps keys and values in {own}, not in {}: leave kv_dtype out",
            format.name()
        );
        return Err(EngineError::Option(text));
    }
    Ok(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_and_numbered() {
        for name in
            ["auto", "cpu", "reference", "cuda", "cuda:0", "cuda:15", "vulkan", "metal:1", "dx12"]
        {
            assert!(is_device_name(name), "{name}");
        }
        for name in [
            "", "cud", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda0", "gpu", "cuda:N", "vulkan:",
        ] {
            assert!(!is_device_name(name), "{name}");
        }
        assert_eq!(cuda_ordinal("cuda:7"), Some(7));
        assert_eq!(adapter("wgpu:2"), Some((Api::Any, 2)));
        assert_eq!(candidates("auto").last(), Some(&"cpu"));
    }

    #[test]
    fn a_format_of_keys_must_be_the_devices_own() {
        assert_eq!(kv_format("cuda:1", None).ok(), Some(KvFormat::F16));
        assert_eq!(kv_format("cuda", Some("int8")).ok(), Some(KvFormat::Int8));
        assert_eq!(kv_format("cpu", Some("bf16")).ok(), Some(KvFormat::Bf16));
        for (device, dtype) in
            [("cuda", "int16"), ("vulkan:0", "int8"), ("reference", "f16"), ("cpu", "f99")]
        {
            let text = kv_format(device, Some(dtype)).map_err(|error| error.to_string());
            assert!(text.is_err_and(|text| text.contains("kv_dtype")), "{device} {dtype}");
        }
    }
}
