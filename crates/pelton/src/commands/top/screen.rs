//! How is a terminal taken over and given back? Its other screen, without echo, key by key.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::signal::unix::{SignalKind, signal};

use super::frame::clipped;

/// The terminal while it is ours; given back as it was when this is dropped.
pub(super) struct Screen {
    before: Termios,
    /// Somebody ordered the program to end.
    is_told: Arc<AtomicBool>,
}

const TAKE: &str = "\x1b[?1049h\x1b[?25l";
const GIVE_BACK: &str = "\x1b[?25h\x1b[?1049l";
/// Where a terminal does not say.
const SIZE_DEFAULT: (usize, usize) = (80, 24);

impl Screen {
    pub(super) fn take() -> Result<Self> {
        let is_told = listen().context("signals cannot be waited for")?;
        let input = std::io::stdin();
        let before = tcgetattr(&input).context("the terminal does not say how it is set")?;
        let mut ours = before.clone();
        ours.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        // A read waits a tenth of a second at most, and gives what is there.
        ours.special_codes[SpecialCodeIndex::VMIN] = 0;
        ours.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(&input, OptionalActions::Now, &ours).context("the terminal cannot be set")?;
        let screen = Self { before, is_told };
        put(TAKE)?;
        Ok(screen)
    }

    /// Draws the lines that fit, over what was there.
    pub(super) fn draw(&self, lines: &[String]) -> Result<()> {
        let size = tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_col > 0);
        let (columns, rows) =
            size.map_or(SIZE_DEFAULT, |size| (size.ws_col.into(), size.ws_row.into()));
        let mut text = "\x1b[H".to_owned();
        for line in lines.iter().take(rows.saturating_sub(1)) {
            text.push_str(&clipped(line, columns));
            text.push_str("\x1b[K\r\n");
        }
        text.push_str("\x1b[J");
        put(&text)
    }

    /// Waits for as long, or until a key or a signal ends the program: then `true`.
    pub(super) fn wait(&self, time: Duration) -> Result<bool> {
        let end = Instant::now() + time;
        let mut keys = [0; 64];
        while Instant::now() < end {
            if self.is_told.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let count = std::io::stdin().read(&mut keys).context("the terminal has gone")?;
            // `q`, Ctrl-C, Ctrl-D.
            if keys[..count].iter().any(|key| matches!(key, b'q' | b'Q' | 3 | 4)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        let _ = put(GIVE_BACK);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Hears SIGTERM and SIGHUP, which would end the program and leave the terminal as it is.
fn listen() -> std::io::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(inside);
    let is_told = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_told);
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        told.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("pelton-signals".to_owned()).spawn(wait)?;
    Ok(is_told)
}

fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("the terminal has gone")
}
