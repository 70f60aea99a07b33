//! Which devices are there? The one place that names backends.

use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use device::{Backend, HeapSettings, SharedAllocator};
use ops::kv_format::KvFormat;

use crate::EngineError;

/// Names that `--device` takes.
pub const DEVICES: &[&str] = &["auto", "cpu", "reference"];

/// The backend of that name; `auto` takes the fastest there is.
///
/// # Errors
/// [`EngineError::Option`] for an unknown name, or settings that the backend refuses.
pub(crate) fn open(
    device: &str,
    threads: Option<usize>,
    instruction_set: Option<&str>,
    kv_format: KvFormat,
    (heaps, allocator): (HeapSettings, Option<SharedAllocator>),
) -> Result<Box<dyn Backend>, EngineError> {
    match device {
        "auto" | "cpu" => CpuBackend::open(threads, instruction_set)
            .map(|backend| backend.with_kv_format(kv_format).with_heaps(heaps, allocator))
            .map(|backend| Box::new(backend) as Box<dyn Backend>)
            .map_err(|error| EngineError::Option(error.to_string())),
        "reference" => Ok(Box::new(ReferenceBackend)),
        other => Err(EngineError::Option(format!(
            "there is no device `{other}`; devices: {}",
            DEVICES.join(", ")
        ))),
    }
}

/// How a device keeps keys and values, by its name.
///
/// # Errors
/// As [`kv_format`].
pub(crate) fn kv_kind(device: &str, kv_dtype: Option<&str>) -> Result<&'static str, EngineError> {
    let format = kv_format(device, kv_dtype)?;
    Ok(if device == "reference" { "f32" } else { format.name() })
}

/// The format in which keys and values are kept, by its name in settings.
///
/// # Errors
/// [`EngineError::Option`] for an unknown name, or a device that has no choice.
pub(crate) fn kv_format(device: &str, kv_dtype: Option<&str>) -> Result<KvFormat, EngineError> {
    let Some(name) = kv_dtype else { return Ok(KvFormat::default()) };
    if device == "reference" {
        let text = "the reference device keeps keys and values in f32: leave kv_dtype out";
        return Err(EngineError::Option(text.to_owned()));
    }
    KvFormat::from_name(name).ok_or_else(|| {
        let asked: String = name.chars().take(40).collect();
        let known = KvFormat::ALL.map(KvFormat::name).join(", ");
        EngineError::Option(format!("kv_dtype is `{asked}`, it must be one of {known}"))
    })
}
