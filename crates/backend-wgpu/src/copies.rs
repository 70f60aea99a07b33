//! How do blocks leave the device and come back? Through a mapped buffer, all layers in one go.
//!
//! Copies go to the queue between steps' commands: a step behind them sees what they wrote.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{BlockCopier, BlockForm, BlockLease, Tape};
use wgpu::{Buffer, BufferUsages, MapMode, SubmissionIndex};

use crate::gpu::Gpu;
use crate::memory::Piece;
use crate::sizes::{BLOCK_TOKENS, page_words};

/// Copies blocks of a program, whose memory lives as long as its copier.
pub(crate) struct Copier {
    gpu: Arc<Gpu>,
    /// Of each layer.
    layers: Vec<Arc<Piece>>,
    page_bytes: u64,
    /// One copy at a time.
    staging: Mutex<Staging>,
}

struct Staging {
    out: Buffer,
    back: Buffer,
    /// The copy that had `back` last.
    last: Option<SubmissionIndex>,
}

impl Copier {
    pub(crate) fn new(gpu: &Arc<Gpu>, tape: &Tape, layers: Vec<Arc<Piece>>) -> Self {
        let page_bytes = 4 * page_words(tape);
        let bytes = page_bytes * layers.len() as u64;
        let buffer = |usage| gpu.buffer("blocks", bytes, usage);
        let out = buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        let back = buffer(BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC);
        Self {
            gpu: Arc::clone(gpu),
            layers,
            page_bytes,
            staging: Mutex::new(Staging { out, back, last: None }),
        }
    }

    /// Of both buffers.
    pub(crate) fn staging_bytes(tape: &Tape) -> u64 {
        2 * 4 * page_words(tape) * u64::from(tape.layers)
    }

    pub(crate) fn form(tape: &Tape) -> BlockForm {
        let (layers, heads_kv, head_dim) = (tape.layers, tape.heads_kv, tape.head_dim);
        BlockForm {
            name: format!("wgpu2 f16[{layers}, {heads_kv}, 2, {BLOCK_TOKENS}, {head_dim}]"),
            bytes: 4 * page_words(tape) as usize * layers as usize,
        }
    }

    pub(crate) fn read(&self, block: u32, bytes: &mut [u8]) {
        let staging = self.staging();
        let out = &staging.out;
        assert_eq!(bytes.len() as u64, out.size(), "a block of another form");
        let mut encoder = self.gpu.encoder();
        for (at, layer) in (0..).zip(&self.layers) {
            let from = layer.offset + u64::from(block) * self.page_bytes;
            let to = at * self.page_bytes;
            encoder.copy_buffer_to_buffer(&layer.buffer, from, out, to, self.page_bytes);
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        let mapped = self.gpu.map(out, out.size(), MapMode::Read, Some(submission));
        match mapped.map(|()| out.get_mapped_range(..)) {
            Ok(Ok(view)) => bytes.copy_from_slice(&view),
            // Nobody may use these bytes: the next step fails.
            _ => self.gpu.give_up("a block could not be read back".to_owned()),
        }
        out.unmap();
    }

    pub(crate) fn write(&self, block: u32, bytes: &[u8]) {
        let mut staging = self.staging();
        let last = staging.last.take();
        let back = &staging.back;
        assert_eq!(bytes.len() as u64, back.size(), "a block of another form");
        let mapped = self.gpu.map(back, back.size(), MapMode::Write, last);
        match mapped.map(|()| back.get_mapped_range_mut(..)) {
            Ok(Ok(mut view)) => view.copy_from_slice(bytes),
            _ => self.gpu.give_up("a block could not be written".to_owned()),
        }
        back.unmap();
        let mut encoder = self.gpu.encoder();
        for (at, layer) in (0..).zip(&self.layers) {
            let to = layer.offset + u64::from(block) * self.page_bytes;
            let from = at * self.page_bytes;
            encoder.copy_buffer_to_buffer(back, from, &layer.buffer, to, self.page_bytes);
        }
        // Steps are submitted behind it, and see what it wrote.
        staging.last = Some(self.gpu.queue.submit([encoder.finish()]));
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockCopier for Copier {
    fn read_block(&self, lease: &BlockLease, bytes: &mut [u8]) {
        self.read(lease.block(), bytes);
    }

    fn write_block(&self, lease: &BlockLease, bytes: &[u8]) {
        self.write(lease.block(), bytes);
    }
}
