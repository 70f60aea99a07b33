//! How long does a socket wait for its peer?
//!
//! hyper's own limit counts an idle kept-alive connection as a slow head; here the two differ. The
//! phase is shared: bytes start a head, a dispatched request makes it busy (the body reader then
//! has its own limit), the end of the response makes it idle again.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::Patience;

/// What a connection is doing.
pub(crate) struct Phase {
    state: AtomicU8,
    /// Of the read that waits.
    reader: Mutex<Option<Waker>>,
}

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

impl Phase {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU8::new(IDLE), reader: Mutex::new(None) }
    }

    pub(crate) fn request_came(&self) {
        self.state.store(BUSY, Ordering::Release);
    }

    /// From now on the connection is idle: its read looks at the time again, unasked by bytes.
    pub(crate) fn response_ended(&self) {
        self.state.store(IDLE, Ordering::Release);
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The state; `reader` is woken when a response ends. It waits from before the request is
    /// dispatched, when its head has just been read.
    fn watch(&self, reader: &Waker) -> u8 {
        let mut waiting = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.as_ref().is_some_and(|known| known.will_wake(reader)) {
            *waiting = Some(reader.clone());
        }
        // Behind the lock: a response that ends from now on finds whom to wake.
        self.state.load(Ordering::Acquire)
    }
}

pub(crate) struct TimedStream {
    stream: TcpStream,
    phase: Arc<Phase>,
    keep_alive: Duration,
    patience: Patience,
    read_timer: Pin<Box<Sleep>>,
    /// The phase `read_timer` was set for.
    read_phase: Option<u8>,
    write_timer: Pin<Box<Sleep>>,
    is_write_stalled: bool,
}

impl TimedStream {
    pub(crate) fn new(
        stream: TcpStream,
        phase: Arc<Phase>,
        keep_alive: Duration,
        patience: Patience,
    ) -> Self {
        Self {
            stream,
            phase,
            keep_alive,
            patience,
            read_timer: Box::pin(sleep(Duration::ZERO)),
            read_phase: None,
            write_timer: Box::pin(sleep(Duration::ZERO)),
            is_write_stalled: false,
        }
    }

    fn set_read_timer(&mut self, phase: u8, after: Duration) {
        if self.read_phase != Some(phase) {
            self.read_phase = Some(phase);
            self.read_timer.as_mut().reset(Instant::now() + after);
        }
    }

    /// Ends a read that has waited too long like a peer that closed.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.phase.watch(context.waker()) {
            IDLE => self.set_read_timer(IDLE, self.keep_alive),
            HEAD => self.set_read_timer(HEAD, self.patience.head),
            _ => {
                self.read_phase = None;
                return Poll::Pending;
            }
        }
        self.read_timer.as_mut().poll(context)
    }

    /// Fails a write that has made no progress for too long.
    fn after_write(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.is_write_stalled = false;
            return written;
        }
        if !self.is_write_stalled {
            self.is_write_stalled = true;
            self.write_timer.as_mut().reset(Instant::now() + self.patience.stall);
        }
        ready!(self.write_timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.poll_patience(context).map(Ok),
            ready => {
                let state = &self.phase.state;
                let begun = state.compare_exchange(IDLE, HEAD, Ordering::AcqRel, Ordering::Acquire);
                if begun.is_ok() {
                    self.read_phase = None;
                    let after = self.patience.head;
                    self.set_read_timer(HEAD, after);
                }
                ready
            }
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.after_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
