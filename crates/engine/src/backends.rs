//! Which devices are there? The one place that names backends.

use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use device::Backend;

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
) -> Result<Box<dyn Backend>, EngineError> {
    match device {
        "auto" | "cpu" => CpuBackend::open(threads, instruction_set)
            .map(|backend| Box::new(backend) as Box<dyn Backend>)
            .map_err(|error| EngineError::Option(error.to_string())),
        "reference" => Ok(Box::new(ReferenceBackend)),
        other => Err(EngineError::Option(format!(
            "there is no device `{other}`; devices: {}",
            DEVICES.join(", ")
        ))),
    }
}
