//! How much memory does a model take? The same words before it is loaded and after.

use std::fmt;
use std::ops::AddAssign;

use device::MemoryUse;

/// Bytes of one model, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    pub(crate) program: MemoryUse,
    pub(crate) tokenizer_bytes: u64,
    /// Buffers of the process for blocks that are not on the device.
    pub(crate) tiers_bytes: u64,
    /// Of heaps, beyond what is planned to be carved from them.
    pub(crate) heap_reserve_bytes: u64,
    /// What of it is in the machine's memory although the device has its own.
    pub(crate) host_reserve_bytes: u64,
    /// How keys and values are kept.
    pub(crate) kv_kind: &'static str,
}

impl ModelMemory {
    /// As the device keeps them.
    pub fn weights_bytes(&self) -> u64 {
        self.program.weights_bytes
    }

    pub fn kv_bytes(&self) -> u64 {
        self.program.kv_bytes
    }

    /// How keys and values are kept, as `kv_dtype` in the configuration names it.
    pub fn kv_kind(&self) -> &'static str {
        self.kv_kind
    }

    /// What steps write besides keys and values.
    pub fn activations_bytes(&self) -> u64 {
        self.program.activations_bytes
    }

    pub fn tokenizer_bytes(&self) -> u64 {
        self.tokenizer_bytes
    }

    /// What `kv_tiers` keep in memory, and have on its way to and from disk.
    pub fn tiers_bytes(&self) -> u64 {
        self.tiers_bytes
    }

    /// What heaps of a configured size hold beyond what the model needs.
    pub fn heap_reserve_bytes(&self) -> u64 {
        self.heap_reserve_bytes
    }

    /// While it is loaded and every page of it has been used.
    pub fn resident_bytes(&self) -> u64 {
        let MemoryUse { weights_bytes, kv_bytes, activations_bytes, .. } = self.program;
        let of_process = self.tokenizer_bytes + self.tiers_bytes;
        weights_bytes + kv_bytes + activations_bytes + self.heap_reserve_bytes + of_process
    }

    /// What the processor's part of a model takes that is split between it and a device with memory
    /// of its own.
    pub fn host_bytes(&self) -> u64 {
        self.program.host_bytes + self.host_reserve_bytes
    }

    /// What of it is on the device, where that has memory of its own.
    pub(crate) fn device_bytes(&self) -> u64 {
        let of_process = self.tokenizer_bytes + self.tiers_bytes + self.host_bytes();
        self.resident_bytes() - of_process
    }

    /// While it is being loaded.
    pub fn peak_bytes(&self) -> u64 {
        self.resident_bytes() + self.program.staging_bytes
    }
}

/// Of two models that are loaded together.
impl AddAssign for ModelMemory {
    fn add_assign(&mut self, other: Self) {
        let (own, other_program) = (&mut self.program, other.program);
        own.weights_bytes += other_program.weights_bytes;
        own.kv_bytes += other_program.kv_bytes;
        own.activations_bytes += other_program.activations_bytes;
        // They are read one after another.
        own.staging_bytes = own.staging_bytes.max(other_program.staging_bytes);
        own.host_bytes += other_program.host_bytes;
        self.tokenizer_bytes += other.tokenizer_bytes;
        self.tiers_bytes += other.tiers_bytes;
        self.heap_reserve_bytes += other.heap_reserve_bytes;
        self.host_reserve_bytes += other.host_reserve_bytes;
    }
}

impl fmt::Display for ModelMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryUse { weights_bytes, kv_bytes, activations_bytes, staging_bytes, .. } =
            self.program;
        write!(
            formatter,
            "{weights_bytes} of weights, {kv_bytes} of KV cache as {}, {activations_bytes} of \
             activations, {} of tokenizer, {} of kv_tiers, {staging_bytes} of staging",
            self.kv_kind, self.tokenizer_bytes, self.tiers_bytes
        )?;
        for (bytes, what) in [
            (self.heap_reserve_bytes, "of heaps beyond that"),
            (self.host_bytes(), "of all these in the machine's memory"),
        ] {
            if bytes > 0 {
                write!(formatter, ", {bytes} {what}")?;
            }
        }
        Ok(())
    }
}
