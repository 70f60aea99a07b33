//! Is a file of remembered answers read whole, or refused with a word and nothing used?

#![allow(clippy::unwrap_used, reason = "tests")]

use messages::{
    CacheNamespace, FinishReason, SamplingParams, SequenceId, SubscriberId, TokenEvent,
    TokenLogprob,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use sharing::{
    Asked, FileKey, FileProblem, Found, Identity, Leaving, ReplayLimits, Sharing, SharingLimits,
    StopRule, Work,
};

const KEY: FileKey = FileKey { model: [3; 32], vocabulary_size: 50 };

fn sharing() -> Sharing {
    let replay = ReplayLimits { entries_max: 8, tokens_max: 100, bytes_max: 1 << 16, ttl_ms: 1000 };
    Sharing::new(SharingLimits { subscribers_max: 2, replay })
}

fn asked(prompt: u32, stop: &StopRule) -> Asked {
    let identity = Identity::of(&Work {
        model: &KEY.model,
        namespace: &CacheNamespace::default(),
        prompt: &[prompt],
        params: &SamplingParams::greedy(),
        stop_tokens: &[],
    });
    Asked { identity, tokens_max: 4, stop: stop.clone() }
}

fn stop() -> StopRule {
    StopRule { texts: vec!["é".to_owned(), "end".to_owned()], min_tokens: 1 }
}

/// One answer of each kind of end.
fn filled() -> Sharing {
    let mut sharing = sharing();
    for prompt in 0..3 {
        let (id, subscriber) = (SequenceId(prompt), SubscriberId(prompt));
        let asked = asked(prompt as u32, &stop());
        sharing.begin(id, subscriber, 4, Some((asked.identity, asked.stop)));
        for index in 0..3_u32 {
            let finish = match (prompt, index) {
                (0, 2) => Some(FinishReason::Stop),
                (1, 2) => Some(FinishReason::Length),
                _ => None,
            };
            let logprob = (index > 0)
                .then(|| TokenLogprob { logprob: -0.5, top: vec![(index, -0.25); index as usize] });
            let event = TokenEvent {
                sequence: id,
                token: 40 + index,
                logprob,
                finish,
                cached: Default::default(),
                proposals: Default::default(),
            };
            sharing.say(&event, 10 * prompt, &mut Vec::new());
        }
    }
    assert_eq!(
        sharing.leave(SubscriberId(2), Leaving::StopText { tokens: 2 }, 30),
        Some(SequenceId(2))
    );
    sharing
}

#[test]
fn what_is_written_is_read() {
    let mut before = filled();
    let bytes = before.to_file(&KEY);
    let mut after = sharing();
    assert_eq!(after.read_file(&bytes, &KEY, 40), Ok(3));
    assert_eq!(after.to_file(&KEY), bytes, "byte for byte");
    for prompt in 0..3 {
        let mut asked = asked(prompt, &stop());
        asked.tokens_max = if prompt == 1 { 3 } else { 4 };
        let found = before.find(SubscriberId(9), &asked, 40);
        assert!(matches!(found, Found::Known { .. }), "{found:?}");
        assert_eq!(after.find(SubscriberId(9), &asked, 40), found);
    }
    assert_eq!(sharing().read_file(&bytes, &KEY, 1005), Ok(2), "the first is too old by now");
    assert_eq!(sharing().read_file(&bytes, &KEY, 5), Ok(3), "a clock that was set back");
}

#[test]
fn other_files_are_refused_with_a_word() {
    let bytes = filled().to_file(&KEY);
    let read = |bytes: &[u8], key: &FileKey| sharing().read_file(bytes, key, 40).unwrap_err();
    assert_eq!(read(b"", &KEY), FileProblem::NotOurs);
    assert_eq!(read(b"GGUF and more", &KEY), FileProblem::NotOurs);
    assert_eq!(read(&bytes, &FileKey { model: [4; 32], ..KEY }), FileProblem::OtherModel);
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert_eq!(read(&newer, &KEY), FileProblem::Version(2));
    let fewer = FileKey { vocabulary_size: 42, ..KEY };
    assert_eq!(read(&bytes, &fewer), FileProblem::Impossible("a token"));
    for cut in 12..bytes.len() {
        assert_eq!(read(&bytes[..cut], &KEY), FileProblem::Damaged, "cut at {cut}");
    }
    for at in 12..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert_eq!(read(&damaged, &KEY), FileProblem::Damaged, "damaged at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// A sum can be made right by anyone: nothing breaks, nothing half-read is used, and bounds
    /// hold whatever the file says.
    #[test]
    fn forged_files_break_nothing(
        changes in prop::collection::vec((44usize..400, any::<u8>()), 1..4),
        cut in 0usize..400,
    ) {
        let mut bytes = filled().to_file(&KEY);
        let end = bytes.len() - 32;
        for (at, value) in changes {
            bytes[at % end] = value;
        }
        bytes.truncate(if cut < 100 { end - cut } else { end });
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        let mut sharing = sharing();
        let read = sharing.read_file(&bytes, &KEY, 40);
        sharing.audit();
        prop_assert_eq!(sharing.counts().replay_entries, read.unwrap_or(0));
    }
}
