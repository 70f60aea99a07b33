//! How does one block look on disk?
//!
//! `"PELTONKV" | version | length of the block | its key | checksum of all that | the block`, all
//! integers little-endian and 8 bytes wide. A file that ends early, has other bytes or another name
//! is not a record: it was torn or damaged, and is deleted by whoever finds it.

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

/// Where the block of `key` starts in `record`, if that is what it is.
pub(crate) fn check(key: &BlockKey, record: &[u8], block_bytes: usize) -> Option<usize> {
    let (found, block) = record.split_at_checked(HEADER_BYTES)?;
    let expected = (block.len() == block_bytes).then(|| header(key, block))?;
    (found == expected).then_some(HEADER_BYTES)
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
        assert_eq!(check(&key, &record, 300), Some(HEADER_BYTES));
        assert_eq!(check(&key.then(&[1]), &record, 300), None, "another block's");
        assert_eq!(check(&key, &record, 301), None, "another layout's");
        for length in 0..record.len() {
            assert_eq!(check(&key, &record[..length], 300), None, "torn at {length}");
        }
        for place in 0..record.len() {
            for bit in 0..8 {
                record[place] ^= 1 << bit;
                assert_eq!(check(&key, &record, 300), None, "bit {bit} of byte {place}");
                record[place] ^= 1 << bit;
            }
        }
    }
}
