//! What does a person see while a model is loaded? A bar on a terminal, if it takes long.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use engine::{Engine, EngineOptions, LoadProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is over sooner needs no bar, which would only flash.
const PATIENCE: Duration = Duration::from_millis(400);
const TICK: Duration = Duration::from_millis(100);

pub(crate) fn load(options: &EngineOptions) -> Result<Engine> {
    let mut options = options.clone();
    let _bar = Bar::watch(&mut options);
    Ok(Engine::load(&options)?)
}

/// Drawn beside a load until it is dropped.
pub(crate) struct Bar {
    end: Option<Sender<()>>,
    drawing: Option<JoinHandle<()>>,
}

impl Bar {
    /// Watches the load that these options will start.
    pub(crate) fn watch(options: &mut EngineOptions) -> Self {
        let progress = Arc::<LoadProgress>::default();
        options.load_progress = Some(Arc::clone(&progress));
        let (end, ended) = mpsc::channel::<()>();
        let drawing = std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            // Nothing is drawn where stderr is no terminal.
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                bar.set_length(progress.total_bytes());
                bar.set_position(progress.done_bytes());
            }
            bar.finish_and_clear();
        });
        Self { end: Some(end), drawing: Some(drawing) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(drawing) = self.drawing.take() {
            // It only draws: whatever became of it, the load is over.
            let _ = drawing.join();
        }
    }
}
