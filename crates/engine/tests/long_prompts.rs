//! Does a long prompt ever delay another request's stream?
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::{Engine, EngineOptions, GenerateRequest, Generation, Prompt, Service, Speculation};
use messages::{CacheNamespace, Refusal, SamplingParams, SharingMode};
use testkit::tiny_model::TinyModel;

const CONTEXT: u32 = 1 << 20;

fn start(engine: &Engine, prompt: String, max_tokens: u32) -> Result<Generation, Refusal> {
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text(prompt),
        params: SamplingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request))
}

/// A prompt far beyond the context is encoded before it is refused: all that it costs is encoding,
/// and a stream must go on meanwhile, token by token.
#[test]
fn a_stream_goes_on_while_a_long_prompt_is_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = TinyModel { context: CONTEXT, ..TinyModel::default() };
    std::fs::write(&path, model.to_bytes()).unwrap();
    let mut options = EngineOptions::new(path, "tiny");
    options.threads = Some(1);
    options.speculation = Speculation::Off;
    options.sequences_max = 4;
    options.encode.threads = 2;
    let engine = Engine::load(&options).unwrap();
    let long = "words and numbers 1234, marks; \u{44F}\u{437}\u{44B}\u{43A} ".repeat(60_000);
    let mut stream = start(&engine, "t".to_owned(), CONTEXT - 8).unwrap();
    for _ in 0..8 {
        assert!(stream.next_blocking().unwrap().end.is_none());
    }
    let done = AtomicBool::new(false);
    let (mut tokens, mut longest) = (0, std::time::Duration::ZERO);
    std::thread::scope(|scope| {
        let encoding = scope.spawn(|| {
            let refused = start(&engine, long, 1).err();
            done.store(true, Ordering::Release);
            refused
        });
        while !done.load(Ordering::Acquire) {
            let waited = Instant::now();
            assert!(stream.next_blocking().unwrap().end.is_none());
            longest = longest.max(waited.elapsed());
            tokens += 1;
        }
        let refused = encoding.join().unwrap().expect("it is longer than the context");

        assert!(refused.to_string().contains("tokens"), "{refused}");
    });
    assert!(engine.status().encoded.shared_spans > 1, "the long one was shared by threads");
    println!("{tokens} tokens came meanwhile, the slowest after {longest:?}");
    // Had the engine's thread encoded it, none would have come but what was told before.
    assert!(tokens >= 3, "{tokens} tokens");
}
