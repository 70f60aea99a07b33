//! How does a device answer, and how does it fail? One device and its queue, with what went wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, DeviceDescriptor, Features, Limits,
    MapMode, PollType, SubmissionIndex,
};

use crate::adapters::{
    self, AdapterFacts, Api, FOR_FRAGMENTS, FOR_MATRIX_UNITS, IMMEDIATE_BYTES, NEEDED, wait,
};
use crate::kernels;

/// What failed on the way to a device or on it; the text says what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WgpuError(pub String);

/// An opened device.
pub(crate) struct Gpu {
    pub(crate) facts: AdapterFacts,
    pub(crate) adapter: wgpu::AdapterInfo,
    pub(crate) limits: Limits,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// The first error that nobody was there to take.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    pub(crate) fn open(api: Api, ordinal: u32) -> Result<Arc<Self>, WgpuError> {
        let adapter = adapters::choose(api, ordinal)?;
        let facts = adapters::facts(&adapter);
        let mut limits = adapter.limits();
        limits.max_immediate_size = IMMEDIATE_BYTES;
        let wanted = Features::SHADER_F16 | Features::SUBGROUP | Features::PIPELINE_CACHE;
        let mut required_features = NEEDED | (adapter.features() & wanted);
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if facts.has_matrix_units {
            required_features |= FOR_MATRIX_UNITS;
            required_features |= adapter.features() & FOR_FRAGMENTS;
            experimental_features = kernels::experimental_features();
        }
        let (device, queue) = wait(adapter.request_device(&DeviceDescriptor {
            label: Some("pelton"),
            required_features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..DeviceDescriptor::default()
        }))
        .map_err(|error| WgpuError(format!("adapter {} gives no device: {error}", facts.name)))?;
        let trouble = Arc::new(Mutex::new(None));
        let gpu = Self { facts, adapter: adapter.get_info(), limits, device, queue, trouble };
        gpu.listen();
        Ok(Arc::new(gpu))
    }

    fn listen(&self) {
        let trouble = Arc::clone(&self.trouble);
        self.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            note(&trouble, error.to_string());
        }));
        let trouble = Arc::clone(&self.trouble);
        self.device.set_device_lost_callback(move |reason, text| {
            // An unload is not a loss.
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&trouble, format!("the device was lost: {text}"));
            }
        });
    }

    /// # Errors
    /// What went wrong since the device was opened.
    pub(crate) fn check(&self) -> Result<(), WgpuError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &*trouble {
            None => Ok(()),
            Some(text) => Err(WgpuError(format!("{}: {text}", self.facts.name))),
        }
    }

    /// Fails every later step, for the reason given.
    pub(crate) fn give_up(&self, text: String) {
        note(&self.trouble, text);
    }

    /// Maps the first `bytes` of a buffer, which the device has let go after `submission`; `None`:
    /// it never had it.
    ///
    /// # Errors
    /// When the device failed.
    pub(crate) fn map(
        &self,
        buffer: &Buffer,
        bytes: u64,
        mode: MapMode,
        submission: Option<SubmissionIndex>,
    ) -> Result<(), WgpuError> {
        let mapped = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&mapped);
        buffer.map_async(mode, ..bytes, move |result| {
            told.store(result.is_ok(), Ordering::Release);
        });
        match submission {
            Some(submission) => self.wait(Some(submission))?,
            None => drop(self.device.poll(PollType::Poll)),
        }
        if mapped.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check()?;
        Err(WgpuError(format!("{} maps no buffer", self.facts.name)))
    }

    pub(crate) fn buffer(&self, label: &str, bytes: u64, usage: BufferUsages) -> Buffer {
        self.device.create_buffer(&BufferDescriptor {
            label: Some(label),
            size: bytes.max(4),
            usage,
            mapped_at_creation: false,
        })
    }

    pub(crate) fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Waits for a submission, or for all.
    ///
    /// # Errors
    /// When the device failed before or meanwhile.
    pub(crate) fn wait(&self, submission: Option<SubmissionIndex>) -> Result<(), WgpuError> {
        let wait = PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(wait);
        self.check()?;
        polled.map(drop).map_err(|error| WgpuError(format!("{}: {error}", self.facts.name)))
    }
}

/// Remembers the first trouble: later ones follow from it.
fn note(trouble: &Mutex<Option<String>>, text: String) {
    trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
}
