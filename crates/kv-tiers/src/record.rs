//! How does one block look on disk?
//!
//! `"PELTONKV" | version | length of the block | its key | checksum of all that | the block`, all
//! integers little-endian and 8 bytes wide. A file that ends early, has other bytes or another name
//! is not a record: it was torn or damaged, and is deleted by whoever finds it.

use std::io::{self, Read};

use crate::BlockKey;

const MAGIC: &[u8; 8] = b"PELTONKV";
const VERSION: u64 = 1;
/// Magic, version, length, key, checksum.
pub(crate) const HEADER_BYTES: usize = 8 + 8 + 8 + 32 + 8;

/// Everything before the block's bytes.
pub(crate) fn header(key: &BlockKey, block: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(block.len() as u64).to_le_bytes());
    header[24..56].copy_from_slice(key.as_bytes());
    let sum = checksum(checksum(0, &header[..56]), block);
    header[56..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Reads the record of `key` into `block`; false if it is not that, whole and no longer.
///
/// # Errors
/// Where it cannot be read, or ends early.
pub(crate) fn read(record: &mut dyn Read, key: &BlockKey, block: &mut [u8]) -> io::Result<bool> {
    let mut found = [0; HEADER_BYTES];
    record.read_exact(&mut found)?;
    record.read_exact(block)?;
    let has_ended = record.read(&mut [0])? == 0;
    Ok(has_ended && found == header(key, block))
}

/// Tells accidents apart, not attacks: each step is a bijection of the sum, so one changed word is
/// always noticed, and more of them but once in 2^64. Eight bytes a step, about as fast as memory.
fn checksum(start: u64, bytes: &[u8]) -> u64 {
    // The odd integer nearest 2^64 / golden ratio.
    let mix = |sum: u64, word: u64| {
        let product = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(start, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    let sum = rest.iter().fold(sum, |sum, &byte| mix(sum, u64::from(byte)));
    mix(sum, bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_is_noticed() {
        let key = BlockKey::root([&b"model"[..]]);
        let block: Vec<u8> = (0..300u32).map(|place| (place * 7) as u8).collect();
        let mut record = header(&key, &block).to_vec();
        record.extend(&block);
        let is_whole = |key: &BlockKey, mut record: &[u8], length: usize| {
            let mut room = vec![0; length];
            read(&mut record, key, &mut room).unwrap_or(false) && room == block
        };
        assert!(is_whole(&key, &record, 300));
        assert!(!is_whole(&key.then(&[1]), &record, 300), "another block's");
        assert!(!is_whole(&key, &record, 301) && !is_whole(&key, &record, 299), "another layout's");
        for length in 0..record.len() {
            assert!(!is_whole(&key, &record[..length], 300), "torn at {length}");
        }
        for place in 0..record.len() {
            for bit in 0..8 {
                record[place] ^= 1 << bit;
                assert!(!is_whole(&key, &record, 300), "bit {bit} of byte {place}");
                record[place] ^= 1 << bit;
            }
        }
    }
}
