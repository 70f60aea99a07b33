//! What if the device fails, the disk is unreadable, or the clock jumps? Planned, to see it happen.
//!
//! A plan is a list such as `fault@5,disk@3,clock:-3600`: the device's parts are those of
//! [`FailPlan`]; `disk@N` makes the Nth tensor (from 0) unreadable while loading; `clock:SECONDS`
//! moves the time of day. Intervals are measured with a monotonic clock, so a jump changes what a
//! template is told and when a model says it was loaded, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use device::{FailPlan, Gate, LoadError};

use crate::EngineError;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failpoints {
    pub(crate) device: FailPlan,
    disk: Option<u64>,
    pub(crate) clock: Clock,
}

impl Failpoints {
    /// # Errors
    /// [`EngineError::Option`] naming the part that cannot be read.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let mut failpoints = Self::default();
        let mut device_parts = Vec::new();
        for part in text.split(',').map(str::trim) {
            let number = |text: &str| {
                let wrong = format!("`{part}` is not a failpoint: `{text}` is not a number");
                text.parse::<i64>().map_err(|_| EngineError::Option(wrong))
            };
            if let Some(count) = part.strip_prefix("disk@") {
                failpoints.disk = Some(number(count)?.unsigned_abs());
            } else if let Some(seconds) = part.strip_prefix("clock:") {
                failpoints.clock = Clock { offset_s: number(seconds)? };
            } else {
                device_parts.push(part);
            }
        }
        failpoints.device = FailPlan::parse(&device_parts.join(",")).map_err(|error| {
            EngineError::Option(format!("{error}, `disk@N` or `clock:SECONDS`"))
        })?;
        Ok(failpoints)
    }

    /// Steps wait for this gate, too.
    pub fn behind(self, gate: &Gate) -> Self {
        Self { device: self.device.behind(gate), ..self }
    }

    pub(crate) fn disk(&self) -> DiskPlan {
        DiskPlan { fail_at: self.disk, reads: AtomicU64::new(0) }
    }
}

/// Counts reads and fails the planned one.
pub(crate) struct DiskPlan {
    fail_at: Option<u64>,
    reads: AtomicU64,
}

impl DiskPlan {
    pub(crate) fn read(&self, tensor: &str) -> Result<(), LoadError> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        if self.fail_at == Some(read) {
            return Err(LoadError(format!("tensor {tensor} cannot be read: planned failure")));
        }
        Ok(())
    }
}

/// The time of day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    offset_s: i64,
}

impl Clock {
    /// Seconds since 1970.
    pub(crate) fn now_unix_s(self) -> i64 {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since_1970.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(0));
        seconds.saturating_add(self.offset_s)
    }
}

#[cfg(test)]
mod tests {
    use super::Failpoints;

    #[test]
    fn parts_are_read_or_refused() {
        let plan = Failpoints::parse("fault@5, disk@3,clock:-60").expect("a plan");
        assert_eq!((plan.disk, plan.clock.offset_s), (Some(3), -60));
        assert!(!plan.device.is_empty());
        for wrong in ["disk@x", "clock:", "melt@2"] {
            assert!(Failpoints::parse(wrong).is_err(), "{wrong}");
        }
    }
}
