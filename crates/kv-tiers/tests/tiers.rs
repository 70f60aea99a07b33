//! Are budgets kept, restarts survived, and damages noticed?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kv_tiers::{BlockBuffers, BlockBytes, BlockKey, HeapBuffers, TierError, TierSettings, Tiers};

const BLOCK_BYTES: usize = 1000;
/// A block and its header.
const RECORD_BYTES: u64 = 1064;

fn key(number: u32) -> BlockKey {
    BlockKey::root([&b"model"[..]]).then(&[number])
}

fn block(number: u32) -> BlockBytes {
    Arc::new(bytes(number))
}

fn bytes(number: u32) -> Vec<u8> {
    (0..BLOCK_BYTES as u32).map(|place| (number + place * 3) as u8).collect()
}

fn buffers() -> Arc<dyn BlockBuffers> {
    Arc::new(HeapBuffers(BLOCK_BYTES))
}

fn settings(ram_blocks: u64, disk_blocks: u64, folder: &Path) -> TierSettings {
    TierSettings {
        ram_bytes: ram_blocks * BLOCK_BYTES as u64,
        disk_bytes: disk_blocks * RECORD_BYTES,
        disk_path: Some(folder.to_owned()),
    }
}

fn open(ram_blocks: u64, disk_blocks: u64, folder: &Path) -> Tiers {
    Tiers::open(&settings(ram_blocks, disk_blocks, folder), BLOCK_BYTES, buffers()).unwrap()
}

fn load(tiers: &Tiers, numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    let then = move |loaded: kv_tiers::Loaded| sender.send(loaded.blocks).unwrap();
    assert!(tiers.load(numbers.map(key).collect(), then).is_ok(), "nothing else is read");
    let loaded = receiver.recv().unwrap();
    loaded.iter().map(|block| (**block).as_ref().to_vec()).collect()
}

fn blocks(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers.map(bytes).collect()
}

/// Waits until the disk holds `count` blocks.
fn until_on_disk(tiers: &Tiers, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while tiers.counts().disk_blocks != count {
        assert!(Instant::now() < deadline, "never: {:?}", tiers.counts());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_memory_has_no_room_for_goes_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let tiers = open(3, 10, folder.path());
    (0..5).for_each(|number| tiers.keep(key(number), block(number)));
    until_on_disk(&tiers, 2);
    let counts = tiers.counts();
    assert_eq!((counts.ram_blocks, counts.ram_bytes), (3, 3000));
    assert_eq!(counts.disk_bytes, 2 * RECORD_BYTES);
    assert_eq!(tiers.find(&[key(0), key(4), key(7), key(1)]).0, 2, "up to the first missing");
    assert_eq!(load(&tiers, 0..7), blocks(0..5), "from both");
    assert!(tiers.find(&[key(0)]).1.unwrap() > Duration::ZERO, "reading was measured");
    assert_eq!(tiers.find(&[key(4)]).1, Some(Duration::ZERO));
}

#[test]
fn budgets_are_never_exceeded() {
    let folder = tempfile::tempdir().unwrap();
    let tiers = open(4, 6, folder.path());
    let mut state = 7_u32;
    for round in 0..400 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let number = state >> 27;
        if round % 3 == 0 {
            for (place, got) in (number..number + 3).zip(load(&tiers, number..number + 3)) {
                assert_eq!(got, bytes(place), "the right bytes or none");
            }
        } else {
            tiers.keep(key(number), block(number));
        }
        let counts = tiers.counts();
        assert!(counts.ram_bytes <= 4000 && counts.disk_bytes <= 6 * RECORD_BYTES, "{counts:?}");
    }
    assert!(tiers.counts().loaded_blocks_total > 50);
    drop(tiers);
    assert!(folder_bytes(folder.path()) <= 6 * RECORD_BYTES, "what is really there");
}

#[test]
fn a_restart_finds_what_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let tiers = open(2, 8, folder.path());
    (0..5).for_each(|number| tiers.keep(key(number), block(number)));
    drop(tiers);
    let tiers = open(2, 8, folder.path());
    assert_eq!(load(&tiers, 0..5), blocks(0..5), "memory went to disk at the end");
    drop(tiers);
    // With less room the oldest go; without any, all.
    let tiers = open(0, 2, folder.path());
    assert_eq!(tiers.counts().disk_blocks, 2);
    assert_eq!(load(&tiers, 3..5), blocks(3..5));
    drop(tiers);
    assert!(folder_bytes(folder.path()) <= 2 * RECORD_BYTES);
}

#[test]
fn torn_and_damaged_records_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let tiers = open(0, 8, folder.path());
    (0..4).for_each(|number| tiers.keep(key(number), block(number)));
    until_on_disk(&tiers, 4);
    drop(tiers);
    let path = |number: u32| folder.path().join(format!("{}.block", key(number)));
    // A crash between rename and the disk: short, or long enough and of other bytes.
    fs::write(path(0), &fs::read(path(0)).unwrap()[..500]).unwrap();
    fs::write(path(1), vec![0; RECORD_BYTES as usize]).unwrap();
    let mut flipped = fs::read(path(2)).unwrap();
    flipped[700] ^= 4;
    fs::write(path(2), flipped).unwrap();
    // A crash while writing, and a file of somebody else.
    fs::write(folder.path().join("unfinished"), b"PELTONKV").unwrap();
    fs::write(folder.path().join("notes.txt"), b"mine").unwrap();

    let tiers = open(0, 8, folder.path());
    assert_eq!(tiers.counts().disk_blocks, 3, "the short one is gone at once");
    assert!(load(&tiers, 1..2).is_empty());
    assert!(load(&tiers, 2..4).is_empty());
    assert_eq!(load(&tiers, 3..4), blocks(3..4));
    assert_eq!(tiers.counts().damaged_blocks_total, 2);
    assert_eq!(tiers.counts().disk_blocks, 1);
    assert!(!path(1).exists() && !folder.path().join("unfinished").exists());
    assert!(folder.path().join("notes.txt").exists(), "what is not ours stays");
    tiers.keep(key(1), block(1));
    until_on_disk(&tiers, 2);
    assert_eq!(load(&tiers, 1..2), blocks(1..2), "a damaged one can be kept again");
}

#[test]
fn a_folder_in_use_or_unsaid_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let _tiers = open(0, 2, folder.path());
    let again = Tiers::open(&settings(0, 2, folder.path()), BLOCK_BYTES, buffers()).err().unwrap();
    assert!(again.to_string().contains("another process"), "{again}");
    let nowhere = TierSettings { disk_bytes: 1, ..TierSettings::default() };
    assert!(matches!(Tiers::open(&nowhere, BLOCK_BYTES, buffers()), Err(TierError::NoPath)));
}

#[test]
fn keys_tell_everything_apart() {
    let root = |parts: &[&str]| BlockKey::root(parts.iter().map(|part| part.as_bytes()));
    let all = [
        root(&["model", "ann", ""]),
        root(&["model", "", "ann"]),
        root(&["modela", "nn", ""]),
        root(&["model", "ann", ""]).then(&[1, 2]),
        root(&["model", "ann", ""]).then(&[2, 1]),
        root(&["model", "ann", ""]).then(&[1]).then(&[2]),
    ];
    for (place, one) in all.iter().enumerate() {
        assert!(all[..place].iter().all(|other| other != one), "{place}");
    }
}
