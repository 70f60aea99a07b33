//! Is an answer with guesses checked on the way the answer without?

#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{
    End, Engine, EngineOptions, EngineStatus, Failpoints, Gate, GenerateRequest, Generation,
    Prompt, Service, Speculation,
};
use messages::{ProposalCounts, SamplingParams};
use testkit::tiny_model::TinyModel;

fn load(speculation: Speculation, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::default().to_bytes()).unwrap();
    let mut options = EngineOptions::new(path, "tiny");
    options.threads = Some(2);
    options.speculation = speculation;
    change(&mut options);
    Engine::load(&options).unwrap()
}

/// Prompts that repeat themselves: there is always something to guess.
fn request(index: u32) -> GenerateRequest {
    let base =
        SamplingParams { max_tokens: Some(60), ignore_eos: true, ..SamplingParams::greedy() };
    let drawn = SamplingParams { temperature: 0.4, seed: Some(u64::from(index)), ..base.clone() };
    let params = match index % 4 {
        0 => base,
        1 => SamplingParams { logprobs: Some(3), ..drawn },
        2 => SamplingParams { presence_penalty: 0.6, repetition_penalty: 1.1, ..drawn },
        _ => SamplingParams { ignore_eos: false, min_tokens: 5, ..drawn },
    };
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text(format!("{index} the cat the dog the cat the ").repeat(2)),
        params,
        stop: if index % 5 == 4 { vec!["q".to_owned()] } else { Vec::new() },
        include_stop: false,
        namespace: messages::CacheNamespace::default(),
        // Each is to be computed.
        sharing: messages::SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    }
}

fn start(engine: &Engine, request: GenerateRequest) -> Generation {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request)).unwrap()
}

/// Everything that is told of an answer, and what became of its guesses.
fn finish(mut generation: Generation) -> (String, ProposalCounts) {
    let (mut told, mut text) = (Vec::new(), String::new());
    loop {
        let delta = generation.next_blocking().unwrap();
        text.push_str(&delta.text);
        told.extend(delta.tokens);
        match delta.end {
            Some(End::Finished { reason, stop, completion_tokens, proposals, .. }) => {
                let end = (reason, stop, completion_tokens);
                return (format!("{text:?} {told:?} {end:?}"), proposals);
            }
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
            None => {}
        }
    }
}

fn guesses(status: &EngineStatus) -> (u64, u64) {
    (status.speculation.accepted_tokens_total, status.speculation.rejected_tokens_total)
}

#[test]
fn speculation_exact() {
    let plain = load(Speculation::Off, |_| ());
    let expected: Vec<String> =
        (0..16).map(|index| finish(start(&plain, request(index))).0).collect();
    assert_eq!(guesses(&plain.status()), (0, 0));
    // Alone, together, and with so little KV cache that answers are pushed out.
    for (kv_cache_bytes, at_once) in [(None, 1), (None, 16), (Some(100 << 10), 16)] {
        let gate = Gate::default();
        let engine = load(Speculation::Always, |options| {
            options.kv_cache_bytes = kv_cache_bytes;
            // All at once, or answers would not push one another out.
            options.pacing.itl_target = None;
            options.failpoints = Failpoints::default().behind(&gate);
        });
        for first in (0..16).step_by(at_once) {
            gate.close();
            let running: Vec<Generation> = (first..first + at_once)
                .map(|index| start(&engine, request(index as u32)))
                .collect();
            gate.open();
            for (index, generation) in (first..).zip(running) {
                let (answer, _) = finish(generation);
                assert_eq!(answer, expected[index], "request {index}, {at_once} at once");
            }
        }
        let status = engine.status();
        let (accepted, rejected) = guesses(&status);
        assert!(accepted > 50 && rejected > 50, "{accepted} right, {rejected} wrong");
        assert_eq!(status.preemptions_total > 0, kv_cache_bytes.is_some());
    }
}

#[test]
fn a_request_can_ask_for_guesses_or_refuse_them() {
    let asking = |speculation| {
        let mut request = request(0);
        request.params.speculation = speculation;
        request
    };
    let engine = load(Speculation::Always, |_| ());
    let (answer, with) = finish(start(&engine, asking(None)));
    assert_eq!(guesses(&engine.status()), (with.accepted.into(), with.rejected.into()));
    assert!(with.accepted + with.rejected > 0, "{with:?}");
    let (same, without) = finish(start(&engine, asking(Some(false))));
    assert_eq!((same, without), (answer, ProposalCounts::default()));
    assert_eq!(guesses(&engine.status()), (with.accepted.into(), with.rejected.into()));
}

fn tiny_file(folder: &std::path::Path, name: &str, model: &TinyModel) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, model.to_bytes()).unwrap();
    path
}

/// Texts that repeat nothing: only a draft can guess here.
fn unrepeated(index: u32) -> GenerateRequest {
    let text: String = (0..40).map(|at| char::from(b'!' + ((index + at * 7) % 90) as u8)).collect();
    // Every fourth is greedy.
    GenerateRequest { prompt: Prompt::Text(text), ..request(4 * index) }
}

#[test]
fn a_draft_model_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // The same model guesses every greedy token rightly, another one next to none.
    let twin = tiny_file(folder.path(), "twin.gguf", &TinyModel::default());
    let stranger = TinyModel { seed: 9, layers: 1, ..TinyModel::default() };
    let stranger = tiny_file(folder.path(), "stranger.gguf", &stranger);
    let plain = load(Speculation::Off, |_| ());
    let expected: Vec<String> =
        (0..8).map(|index| finish(start(&plain, unrepeated(index))).0).collect();
    let mut shares = Vec::new();
    for draft in [twin, stranger] {
        let engine = load(Speculation::Always, |options| options.draft_model = Some(draft));
        let running: Vec<Generation> =
            (0..8).map(|index| start(&engine, unrepeated(index))).collect();
        for (generation, expected) in running.into_iter().zip(&expected) {
            assert_eq!(finish(generation).0, *expected);
        }
        let (accepted, rejected) = guesses(&engine.status());
        assert!(accepted + rejected > 100, "{accepted} right, {rejected} wrong");
        shares.push(accepted as f64 / (accepted + rejected) as f64);
    }
    assert!(shares[0] > 0.8 && shares[0] > shares[1], "the twin guesses better: {shares:?}");
}

#[test]
fn a_draft_of_another_vocabulary_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_file(folder.path(), "model.gguf", &TinyModel::default());
    let mut bytes = TinyModel::default().to_bytes();
    let token = b"<|im_end|>";
    let at = bytes.windows(token.len()).position(|window| window == token).unwrap();
    bytes[at + 2] = b'X';
    let other = folder.path().join("other.gguf");
    std::fs::write(&other, bytes).unwrap();
    let mut options = EngineOptions::new(model, "tiny");
    options.draft_model = Some(other);
    let error = Engine::load(&options).err().unwrap().to_string();
    assert!(error.contains("vocabulary"), "{error}");
}
