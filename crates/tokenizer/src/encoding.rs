//! How does a text become ids, on one thread and on several?
//!
//! A long text is cut into spans that give the same ids apart as together (`cuts.rs`), never inside
//! a special token, and threads take spans as they come free. Threads are started for the text and
//! end with it: starting one costs as much as encoding a few kilobytes, and an idle pool would
//! compete with nobody but could be forgotten. Encoding the whole text at once is the slow twin.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::byte_level::ByteLevelScratch;
use crate::cuts::CutRule;
use crate::metaspace::MetaspaceScratch;
use crate::normalizer::{Normalizer, normalize};
use crate::piece_cache::PieceCache;
use crate::sentence_piece::{Lookup, SentencePieceScratch};
use crate::special::{Fragment, SpecialMatcher};
use crate::tokenizer::{Model, Tokenizer};
use crate::{EncodeError, EncodeOptions, TEXT_MAX_BYTES, TokenType};

/// How a tokenizer uses threads and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeSettings {
    /// For one long text, or for the texts of a batch; 1: the caller's thread alone.
    pub threads: usize,
    /// A text is shared between threads in spans of no fewer bytes.
    pub span_bytes_min: usize,
    /// For the tokens of pieces seen before, for each thread; 0: none.
    pub cache_bytes: usize,
}

impl Default for EncodeSettings {
    /// One thread.
    fn default() -> Self {
        // 64 KiB take a millisecond, a thread's start a twentieth of that; the table fits into a
        // core's own cache with room to spare.
        EncodeSettings { threads: 1, span_bytes_min: 64 << 10, cache_bytes: 512 << 10 }
    }
}

impl EncodeSettings {
    /// What the tables of pieces take together between texts.
    pub fn cache_bytes_max(&self) -> usize {
        self.cache_bytes.saturating_mul(self.pooled_max())
    }

    /// Scratches kept for later: one for each thread of a text, or for two texts at once.
    fn pooled_max(&self) -> usize {
        self.threads.max(2)
    }
}

/// What a tokenizer has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeCounts {
    pub texts: u64,
    pub bytes: u64,
    pub tokens: u64,
    /// Spans of texts that several threads shared.
    pub shared_spans: u64,
    /// Pieces found in a table, and pieces merged that could have been.
    pub cache_hits: u64,
    pub cache_misses: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    texts: AtomicU64,
    bytes: AtomicU64,
    tokens: AtomicU64,
    shared_spans: AtomicU64,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
}

/// Spans a thread: more even work, and no more than a few hundred bytes of bookkeeping.
const SPANS_PER_THREAD: usize = 8;
/// Merging one long piece takes 40 times its bytes; that memory is not kept.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

/// Memory that the pieces of a text share, and the pieces seen before.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    byte_level: ByteLevelScratch,
    sentence_piece: SentencePieceScratch,
    metaspace: MetaspaceScratch,
    cache: PieceCache,
}

#[derive(Debug, Default)]
pub(crate) struct ScratchPool {
    idle: Mutex<Vec<Scratch>>,
}

impl ScratchPool {
    fn take(&self, settings: &EncodeSettings) -> Scratch {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| {
            let cache = PieceCache::new(settings.cache_bytes);
            Scratch { cache, ..Scratch::default() }
        })
    }

    fn give(&self, mut scratch: Scratch, settings: &EncodeSettings) {
        if scratch.byte_level.bytes() > SCRATCH_BYTES_MAX {
            scratch.byte_level = ByteLevelScratch::default();
        }
        if scratch.sentence_piece.bytes() > SCRATCH_BYTES_MAX {
            scratch.sentence_piece = SentencePieceScratch::default();
        }
        if scratch.metaspace.bytes() > SCRATCH_BYTES_MAX {
            scratch.metaspace = MetaspaceScratch::default();
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < settings.pooled_max() {
            idle.push(scratch);
        }
    }
}

/// A part of a text that is encoded by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span<'t> {
    text: &'t str,
    /// Whether a text here begins with a space that is not in it.
    prefix: bool,
}

impl Tokenizer {
    /// The ids of a text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, EncodeError> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(EncodeError::TextTooLong { length: text.len() });
        }
        self.check_length(text)?;
        let matcher = self.matcher(options.special);
        // English text has about four bytes a token.
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.begin_ids().iter().filter(|_| options.add_bos));
        let whole = Span { text, prefix: self.prefix_at(true) };
        let EncodeSettings { threads, span_bytes_min, .. } = *self.settings();
        if threads > 1 && self.may_cut() && text.len() >= 2 * span_bytes_min.max(1) {
            let spans = self.plan(matcher, whole);
            let encode = |at: usize, scratch: &mut Scratch| {
                let mut ids = Vec::with_capacity(spans[at].text.len() / 3 + 2);
                self.encode_span(matcher, spans[at], scratch, &mut ids);
                ids
            };
            for part in self.share(spans.len(), &encode) {
                ids.extend_from_slice(&part);
            }
            self.counters.shared_spans.fetch_add(spans.len() as u64, Ordering::Relaxed);
        } else {
            let mut scratch = self.take_scratch();
            self.encode_span(matcher, whole, &mut scratch, &mut ids);
            self.give_scratch(scratch);
        }
        ids.extend(self.end_ids().iter().filter(|_| options.add_eos));
        self.counters.texts.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        self.counters.tokens.fetch_add(ids.len() as u64, Ordering::Relaxed);
        Ok(ids)
    }

    /// The ids of several texts, each as [`Tokenizer::encode`] gives them. Threads share the texts
    /// where there are enough of them, and each text where there are not.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        options: EncodeOptions,
    ) -> Result<Vec<Vec<u32>>, EncodeError> {
        let threads = self.settings().threads;
        if threads <= 1 || texts.len() < threads {
            return texts.iter().map(|text| self.encode(text, options)).collect();
        }
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        if longest > TEXT_MAX_BYTES {
            return Err(EncodeError::TextTooLong { length: longest });
        }
        texts.iter().try_for_each(|text| self.check_length(text))?;
        let matcher = self.matcher(options.special);
        let prefix = self.prefix_at(true);
        let encoded = self.share(texts.len(), &|at, scratch| {
            let mut ids = Vec::with_capacity(texts[at].len() / 3 + 2);
            ids.extend(self.begin_ids().iter().filter(|_| options.add_bos));
            self.encode_span(matcher, Span { text: texts[at], prefix }, scratch, &mut ids);
            ids.extend(self.end_ids().iter().filter(|_| options.add_eos));
            ids
        });
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let tokens: usize = encoded.iter().map(Vec::len).sum();
        self.counters.texts.fetch_add(texts.len() as u64, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        Ok(encoded)
    }

    /// What this tokenizer has done so far.
    pub fn counts(&self) -> EncodeCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        EncodeCounts {
            texts: read(&counters.texts),
            bytes: read(&counters.bytes),
            tokens: read(&counters.tokens),
            shared_spans: read(&counters.shared_spans),
            cache_hits: read(&counters.cache_hits),
            cache_misses: read(&counters.cache_misses),
        }
    }

    /// Refuses a text that is too long once it is normalized: at most 18 times as long.
    fn check_length(&self, text: &str) -> Result<(), EncodeError> {
        let mut length = text.len();
        if !self.normalizers().is_empty() && length > TEXT_MAX_BYTES / 18 {
            length = length.max(normalize(self.normalizers(), text).len());
        }
        if length > TEXT_MAX_BYTES { Err(EncodeError::TextTooLong { length }) } else { Ok(()) }
    }

    /// A replaced text might lie over a cut; what else normalizes changes no letter beside a space.
    fn may_cut(&self) -> bool {
        !self.normalizers().iter().any(|step| matches!(step, Normalizer::Replace { .. }))
    }

    fn take_scratch(&self) -> Scratch {
        self.scratches.take(self.settings())
    }

    fn give_scratch(&self, mut scratch: Scratch) {
        let (hits, misses) = scratch.cache.take_counts();
        self.counters.cache_hits.fetch_add(hits, Ordering::Relaxed);
        self.counters.cache_misses.fetch_add(misses, Ordering::Relaxed);
        self.scratches.give(scratch, self.settings());
    }

    /// Calls `encode` for `0..count` from as many threads as are set, and gives the results in
    /// order.
    fn share(
        &self,
        count: usize,
        encode: &(dyn Fn(usize, &mut Scratch) -> Vec<u32> + Sync),
    ) -> Vec<Vec<u32>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut scratch = self.take_scratch();
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    break;
                }
                done.push((at, encode(at, &mut scratch)));
            }
            self.give_scratch(scratch);
            done
        };
        let mut results = vec![Vec::new(); count];
        std::thread::scope(|scope| {
            let threads = self.settings().threads.min(count);
            let name = || std::thread::Builder::new().name("pelton-encode".to_owned());
            // Where the system has no more threads, those that are there do the work.
            let others: Vec<_> =
                (1..threads).map_while(|_| name().spawn_scoped(scope, work).ok()).collect();
            let mut done = work();
            for other in others {
                match other.join() {
                    Ok(more) => done.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            for (at, ids) in done {
                results[at] = ids;
            }
        });
        results
    }

    /// Cuts a text into spans for all threads. Linear in the text, and so is what it gives.
    fn plan<'t>(&self, matcher: &SpecialMatcher, whole: Span<'t>) -> Vec<Span<'t>> {
        let EncodeSettings { threads, span_bytes_min, .. } = *self.settings();
        let text = whole.text;
        let bytes = span_bytes_min.max(text.len().div_ceil(threads * SPANS_PER_THREAD)).max(1);
        let cuts = self.cut_rule();
        let mut spans = Vec::new();
        let (mut start, mut start_prefix) = (0, whole.prefix);
        let (mut at, mut prefix) = (0, whole.prefix);
        matcher.fragments(text, &mut |fragment, end| {
            match fragment {
                Fragment::Text(fragment) => {
                    while start + bytes < end {
                        let from = (start + bytes).saturating_sub(at);
                        let Some(cut) = cuts.next(fragment, from) else { break };
                        spans.push(Span { text: &text[start..at + cut], prefix: start_prefix });
                        (start, start_prefix) = (at + cut, false);
                    }
                    prefix = false;
                }
                Fragment::Token(id) => {
                    prefix = self.prefix_after(id);
                    if end - start >= bytes && end < text.len() {
                        spans.push(Span { text: &text[start..end], prefix: start_prefix });
                        (start, start_prefix) = (end, prefix);
                    }
                }
            }
            at = end;
        });
        spans.push(Span { text: &text[start..], prefix: start_prefix });
        spans
    }

    /// Whether a space goes in front of a text behind this special token: behind a control token
    /// one does, where the vocabulary has it so; a user-defined token is text.
    fn prefix_after(&self, id: u32) -> bool {
        let is_text = self.token_type(id) == Some(TokenType::UserDefined);
        (!is_text || !self.user_defined_is_text()) && self.prefix_at(false)
    }

    fn encode_span(
        &self,
        matcher: &SpecialMatcher,
        span: Span<'_>,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut prefix = span.prefix;
        matcher.fragments(span.text, &mut |fragment, _| match fragment {
            Fragment::Text(text) => {
                let text = Span { text, prefix: std::mem::take(&mut prefix) };
                self.encode_text(text, scratch, ids);
            }
            Fragment::Token(id) => {
                // A space goes in front of a text that begins with a user-defined token, too.
                if prefix
                    && self.user_defined_is_text()
                    && self.token_type(id) == Some(TokenType::UserDefined)
                {
                    self.encode_text(Span { text: "", prefix }, scratch, ids);
                }
                ids.push(id);
                prefix = self.prefix_after(id);
            }
        });
    }

    /// A text without special tokens.
    fn encode_text(&self, span: Span<'_>, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        // Special tokens were found before: none comes out of this.
        let normal = normalize(self.normalizers(), span.text);
        let span = Span { text: normal.as_ref(), ..span };
        let (texts, table) = self.texts();
        let lookup = Lookup { texts, table, types: self.types() };
        let Scratch { byte_level, sentence_piece, metaspace, cache } = scratch;
        match self.model() {
            Model::ByteLevel(bpe) => {
                let whole = |spelled: &[u8]| {
                    let id = table.find(texts, spelled)?;
                    (self.token_type(id) == Some(TokenType::Normal)).then_some(id)
                };
                let spaced: String;
                let mut text = span.text;
                if span.prefix && !text.starts_with(' ') {
                    spaced = format!(" {text}");
                    text = &spaced;
                }
                bpe.encode(text, whole, byte_level, cache, ids);
            }
            Model::SentencePiece(bpe) => {
                bpe.encode(span.text, span.prefix, lookup, sentence_piece, cache, ids);
            }
            Model::Metaspace(bpe) => {
                bpe.encode(span.text, span.prefix, lookup, metaspace, cache, ids);
            }
            Model::WordPiece(pieces) => pieces.encode(span.text, lookup, ids),
            Model::Unigram(unigram) => unigram.encode(span.text, span.prefix, lookup, ids),
        }
    }

    fn cut_rule(&self) -> CutRule {
        match self.model() {
            Model::ByteLevel(bpe) => bpe.cut_rule(),
            Model::SentencePiece(bpe) => bpe.cut_rule(),
            Model::Metaspace(bpe) => bpe.cut_rule(),
            // Their texts are short.
            Model::WordPiece(_) | Model::Unigram(_) => CutRule::Never,
        }
    }
}
