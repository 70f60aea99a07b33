//! How long is the end waited for? For a device that hangs a moment only: the process ends, which
//! frees everything anyway. For a disk that takes what outlasts the process as long again as
//! answers had to finish.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use engine::SaveProgress;

/// Of who does not write to a disk.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at what is being done.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What had not been done when the process ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    DeviceHangs,
    DiskIsSlow { answers: u64, blocks: u64, patience: Duration },
}

/// Unloads all models by letting go of them.
pub(super) fn unload<T: Send + 'static>(
    models: T,
    saving: &SaveProgress,
    drain_time: Duration,
) -> Ending {
    let (ended, unloaded) = mpsc::channel();
    std::thread::spawn(move || {
        drop(models);
        // The main thread may have given up.
        let _ = ended.send(());
    });
    wait(&unloaded, saving, drain_time)
}

fn wait(unloaded: &Receiver<()>, saving: &SaveProgress, drain_time: Duration) -> Ending {
    let start = Instant::now();
    let mut seen_writing = start;
    let patience = drain_time.saturating_add(DEVICE_PATIENCE);
    loop {
        match unloaded.recv_timeout(LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ending::Whole,
        }
        if saving.is_writing() {
            seen_writing = Instant::now();
            if start.elapsed() >= patience {
                let (answers, blocks) = (saving.answers_left(), saving.blocks_left());
                return Ending::DiskIsSlow { answers, blocks, patience };
            }
        } else if seen_writing.elapsed() >= DEVICE_PATIENCE {
            return Ending::DeviceHangs;
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::DeviceHangs => write!(formatter, "; a device did not answer"),
            Self::DiskIsSlow { answers, blocks, patience } => {
                let seconds = patience.as_secs();
                write!(formatter, "; the disk was too slow: after {seconds} s ")?;
                match answers {
                    0 => write!(formatter, "{blocks} blocks of kv_tiers")?,
                    _ => write!(formatter, "the remembered answers (sharing.folder)")?,
                }
                write!(formatter, " were not written (raise server.drain_seconds to wait longer)")
            }
        }
    }
}
