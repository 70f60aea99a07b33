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

/// A model and layout.
fn name(number: u32) -> BlockKey {
    BlockKey::root([&b"name"[..]]).then(&[number])
}

fn open(ram_blocks: u64, disk_blocks: u64, folder: &Path) -> Tiers {
    open_as(0, (ram_blocks, disk_blocks), folder)
}

fn open_as(number: u32, (ram_blocks, disk_blocks): (u64, u64), folder: &Path) -> Tiers {
    let settings = settings(ram_blocks, disk_blocks, folder);
    Tiers::open(&settings, name(number), BLOCK_BYTES, buffers()).unwrap()
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
    let bytes = |path: std::path::PathBuf| match path.is_dir() {
        true => folder_bytes(&path),
        false if path.ends_with("lock") => 0,
        // What is removed meanwhile is not here.
        false => fs::metadata(path).map_or(0, |metadata| metadata.len()),
    };
    fs::read_dir(folder).unwrap().map(|entry| bytes(entry.unwrap().path())).sum()
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
            // Half of the times behind the writer, who may be slow; otherwise beside it.
            while round % 2 == 0 && tiers.wait_for_write() {}
            for (place, got) in (number..number + 3).zip(load(&tiers, number..number + 3)) {
                assert_eq!(got, bytes(place), "the right bytes or none");
            }
        } else {
            tiers.keep(key(number), block(number));
        }
        let counts = tiers.counts();
        assert!(counts.ram_bytes <= 4000 && counts.disk_bytes <= 6 * RECORD_BYTES, "{counts:?}");
    }
    assert!(tiers.counts().loaded_blocks_total > 20, "{:?}", tiers.counts());
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
    let own = folder.path().join(name(0).to_string());
    let path = |number: u32| own.join(format!("{}.block", key(number)));
    // A crash between rename and the disk: short, or long enough and of other bytes.
    fs::write(path(0), &fs::read(path(0)).unwrap()[..500]).unwrap();
    fs::write(path(1), vec![0; RECORD_BYTES as usize]).unwrap();
    let mut flipped = fs::read(path(2)).unwrap();
    flipped[700] ^= 4;
    fs::write(path(2), flipped).unwrap();
    // A crash while writing, and a file of somebody else.
    fs::write(own.join("unfinished"), b"PELTONKV").unwrap();
    fs::write(own.join("notes.txt"), b"mine").unwrap();

    let tiers = open(0, 8, folder.path());
    assert_eq!(tiers.counts().disk_blocks, 3, "the short one is gone at once");
    assert!(load(&tiers, 1..2).is_empty());
    assert!(load(&tiers, 2..4).is_empty());
    assert_eq!(load(&tiers, 3..4), blocks(3..4));
    assert_eq!(tiers.counts().damaged_blocks_total, 2);
    assert_eq!(tiers.counts().disk_blocks, 1);
    assert!(!path(1).exists() && !own.join("unfinished").exists());
    assert!(own.join("notes.txt").exists(), "what is not ours stays");
    tiers.keep(key(1), block(1));
    until_on_disk(&tiers, 2);
    assert_eq!(load(&tiers, 1..2), blocks(1..2), "a damaged one can be kept again");
}

#[test]
fn a_folder_in_use_or_unsaid_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let _tiers = open(0, 2, folder.path());
    let settings = settings(0, 2, folder.path());
    let again = Tiers::open(&settings, name(0), BLOCK_BYTES, buffers()).err().unwrap();
    assert!(again.to_string().contains("another process"), "{again}");
    let nowhere = TierSettings { disk_bytes: 1, ..TierSettings::default() };
    let opened = Tiers::open(&nowhere, name(0), BLOCK_BYTES, buffers());
    assert!(matches!(opened, Err(TierError::NoPath)));
}

#[test]
fn folders_of_other_layouts_make_room_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u32| folder.path().join(name(number).to_string());
    for number in 0..3 {
        let tiers = open_as(number, (0, 6), folder.path());
        (0..2).for_each(|number| tiers.keep(key(number), block(number)));
        drop(tiers);
        let lock = fs::File::options().append(true).open(path(number).join("lock")).unwrap();
        let used = std::time::UNIX_EPOCH + Duration::from_secs(u64::from(number) * 1000 + 1000);
        lock.set_modified(used).unwrap();
    }
    // One of an earlier version has nothing in its lock, but the same time.
    fs::write(path(0).join("lock"), "").unwrap();
    let lock = fs::File::options().append(true).open(path(0).join("lock")).unwrap();
    lock.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(500)).unwrap();
    assert_eq!(folder_bytes(folder.path()), 6 * RECORD_BYTES);
    let tiers = open_as(3, (0, 6), folder.path());
    assert!(path(0).exists(), "nothing needs its room yet");
    tiers.keep(key(0), block(0));
    until_on_disk(&tiers, 1);
    assert!(!path(0).exists() && path(1).exists() && path(2).exists(), "the oldest");
    (1..4).for_each(|number| tiers.keep(key(number), block(number)));
    until_on_disk(&tiers, 4);
    assert!(!path(1).exists() && path(2).exists(), "the next");
    assert_eq!(folder_bytes(folder.path()), 6 * RECORD_BYTES);
    (4..9).for_each(|number| tiers.keep(key(number), block(number)));
    drop(tiers);
    assert!(!path(2).exists());
    assert_eq!(folder_bytes(folder.path()), 6 * RECORD_BYTES, "all of it, and no more");
}

#[test]
fn models_in_use_share_the_folder_equally() {
    let folder = tempfile::tempdir().unwrap();
    let first = open_as(0, (0, 8), folder.path());
    (0..9).for_each(|number| first.keep(key(number), block(number)));
    until_on_disk(&first, 8);
    // It is in use: nothing of it may be removed by others, and it gives up half by itself.
    let second = open_as(1, (0, 8), folder.path());
    until_on_disk(&first, 4);
    for number in 0..40 {
        second.keep(key(number), block(number));
        first.keep(key(100 + number), block(number));
    }
    while first.wait_for_write() || second.wait_for_write() {}
    assert_eq!((first.counts().disk_blocks, second.counts().disk_blocks), (4, 4));
    assert_eq!(folder_bytes(folder.path()), 8 * RECORD_BYTES);
    drop(first);
    // What nobody uses makes room.
    (0..8).for_each(|number| second.keep(key(200 + number), block(number)));
    until_on_disk(&second, 8);
    drop(second);
    assert_eq!(folder_bytes(folder.path()), 8 * RECORD_BYTES);
}

#[test]
fn a_folder_that_is_removed_is_forgotten_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tiers");
    let tiers = open(0, 8, &root);
    (0..5).for_each(|number| tiers.keep(key(number), block(number)));
    until_on_disk(&tiers, 5);
    // At once, as far as anybody can see.
    fs::rename(&root, folder.path().join("elsewhere")).unwrap();
    until_on_disk(&tiers, 0);
    assert_eq!(tiers.find(&[key(0)]).0, 0);
    assert_eq!(tiers.counts().damaged_blocks_total, 0, "none of them was");
    (0..5).for_each(|number| tiers.keep(key(number), block(number)));
    until_on_disk(&tiers, 5);
    assert_eq!(load(&tiers, 0..5), blocks(0..5));
}

#[test]
fn what_is_yet_to_be_saved_is_counted_down() {
    let folder = tempfile::tempdir().unwrap();
    let tiers = open(4, 8, folder.path());
    (0..4).for_each(|number| tiers.keep(key(number), block(number)));
    let left = Arc::new(std::sync::atomic::AtomicU64::new(0));
    tiers.count_down(&left);
    assert_eq!(left.load(std::sync::atomic::Ordering::Acquire), 4);
    assert!(!tiers.wait_for_write(), "nothing is queued");
    drop(tiers);
    assert_eq!(left.load(std::sync::atomic::Ordering::Acquire), 0);
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
