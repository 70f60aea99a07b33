//! How do texts become alike for vocabularies of SentencePiece? By a table of replacements that was
//! made with them: a trie in one array, and the texts that its leaves name.
//!
//! The format is that of SentencePiece's `precompiled_charsmap` and of Darts-clone
//! (<https://github.com/s-yata/darts-clone>); which parts of a text are looked up is as in the
//! `tokenizers` crate: short clusters of characters first, else each character.

use unicode_segmentation::UnicodeSegmentation;

/// The largest published has 300 KB; a hundred times that.
const BYTES_MAX: usize = 32 << 20;
/// Longer clusters are looked up character by character.
const CLUSTER_BYTES_MAX: usize = 6;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Charsmap {
    units: Vec<u32>,
    texts: Vec<u8>,
}

impl Charsmap {
    /// `None` where the bytes are no such table.
    pub(crate) fn read(bytes: &[u8]) -> Option<Charsmap> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if bytes.len() > BYTES_MAX || !length.is_multiple_of(4) || length > rest.len() {
            return None;
        }
        let (units, texts) = rest.split_at(length);
        let units = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit));
        Some(Charsmap { units: units.collect(), texts: texts.to_vec() })
    }

    pub(crate) fn apply(&self, text: &str) -> String {
        let mut normal = String::with_capacity(text.len() + 8);
        for cluster in text.graphemes(true) {
            if cluster.len() < CLUSTER_BYTES_MAX
                && let Some(found) = self.find(cluster)
            {
                normal.push_str(found);
                continue;
            }
            for (at, character) in cluster.char_indices() {
                let part = &cluster[at..at + character.len_utf8()];
                normal.push_str(self.find(part).unwrap_or(part));
            }
        }
        normal
    }

    /// What stands for a text: the replacement of its shortest beginning that has one, as the
    /// reference has it.
    fn find(&self, text: &str) -> Option<&str> {
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let unit = |place: u32| self.units.get(place as usize).copied();
        let mut place = offset(unit(0)?);
        for byte in text.bytes().take_while(|byte| *byte != 0) {
            place ^= u32::from(byte);
            let here = unit(place)?;
            if here & (1 << 31 | 0xff) != u32::from(byte) {
                return None;
            }
            place ^= offset(here);
            if here >> 8 & 1 == 1 {
                let start = (unit(place)? & !(1 << 31)) as usize;
                let rest = self.texts.get(start..)?;
                let end = rest.iter().position(|byte| *byte == 0)?;
                return std::str::from_utf8(&rest[..end]).ok();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Charsmap;

    #[test]
    fn damaged_tables_are_none_or_find_nothing() {
        for bytes in [&b""[..], b"abc", b"\x05\0\0\0abcdefgh", b"\xff\xff\xff\xff"] {
            assert_eq!(Charsmap::read(bytes), None);
        }
        let wild: Vec<u8> = [8, 0, 0, 0].into_iter().chain([0xff; 40]).collect();
        let wild = Charsmap::read(&wild).map(|wild| wild.apply("añ\u{301} x"));
        assert_eq!(wild.as_deref(), Some("añ\u{301} x"));
        let empty = Charsmap::read(&[0, 0, 0, 0]).map(|empty| empty.apply("text"));
        assert_eq!(empty.as_deref(), Some("text"));
    }
}
