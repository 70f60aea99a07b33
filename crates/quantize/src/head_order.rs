//! Where do heads lie otherwise in a GGUF file than in a folder, and how are they put there?
//!
//! Rotary pairs: a folder has a head's halves one below the other, GGUF files of some families have
//! them side by side. Heads of values in gated delta nets: a folder has those that share a key
//! together, GGUF files have the first of each key, then the second of each (llama.cpp's
//! `conversion/qwen.py`).

use ops::quant_format::QuantFormat;
use weights::WeightFile;

use crate::QuantizeError;
use crate::encoding::Stored;

/// Architectures whose GGUF files have rotary pairs side by side.
const SIDE_BY_SIDE: [&str; 3] = ["llama", "mistral3", "smollm3"];
/// Those whose GGUF files have heads of values in another order.
const VALUES_IN_TURN: [&str; 2] = ["qwen35", "qwen35moe"];

/// From which row or column each is taken.
pub(crate) enum Order {
    Rows(Vec<usize>),
    Columns(Vec<usize>),
}

impl Order {
    /// What puts back what this one moves.
    pub(crate) fn inverted(self) -> Self {
        let back = |places: Vec<usize>| {
            let mut back = vec![0; places.len()];
            for (to, from) in places.into_iter().enumerate() {
                back[from] = to;
            }
            back
        };
        match self {
            Self::Rows(places) => Self::Rows(back(places)),
            Self::Columns(places) => Self::Columns(back(places)),
        }
    }

    /// The tensor's bytes in this order, and their format. Rows of blocks are taken apart where
    /// columns change places.
    pub(crate) fn apply(&self, tensor: &Stored<'_>) -> (Vec<u8>, QuantFormat) {
        match self {
            Self::Rows(places) => {
                let row_bytes = tensor.bytes.len() / places.len().max(1);
                let row = |&place: &usize| &tensor.bytes[place * row_bytes..][..row_bytes];
                (places.iter().flat_map(row).copied().collect(), tensor.format)
            }
            Self::Columns(places) => {
                let mut values = vec![0f32; tensor.cols];
                let mut bytes = Vec::with_capacity(4 * tensor.rows() * tensor.cols);
                for row in 0..tensor.rows() {
                    tensor.row(row, &mut values);
                    let ordered = places.iter().flat_map(|&place| values[place].to_le_bytes());
                    bytes.extend(ordered);
                }
                (bytes, QuantFormat::F32)
            }
        }
    }
}

/// What a GGUF file has in another order than a folder.
#[derive(Default)]
pub(crate) struct HeadOrder {
    pairs: Option<Pairs>,
    values: Option<Values>,
}

/// Heads with rotary pairs.
struct Pairs {
    heads: u64,
    heads_kv: u64,
}

/// Heads of a gated delta net.
struct Values {
    heads: u64,
    heads_key: u64,
    /// Rows of all queries, or of all keys.
    key_rows: u64,
    /// Rows of one head's values.
    value_dim: u64,
}

impl HeadOrder {
    pub(crate) fn of(file: &WeightFile, architecture: &str) -> Result<Self, QuantizeError> {
        let mut all = Self::default();
        let count = |key: &str| {
            let key = format!("{architecture}.{key}");
            file.metadata().optional::<u32>(&key).map(|count| count.map(u64::from))
        };
        if SIDE_BY_SIDE.contains(&architecture) {
            let heads = count("attention.head_count")?.unwrap_or(1).max(1);
            let heads_kv = count("attention.head_count_kv")?.unwrap_or(heads).max(1);
            all.pairs = Some(Pairs { heads, heads_kv });
        }
        if VALUES_IN_TURN.contains(&architecture) {
            let heads = count("ssm.time_step_rank")?.unwrap_or(1).max(1);
            let heads_key = count("ssm.group_count")?.unwrap_or(heads).max(1);
            let key_rows = heads_key.saturating_mul(count("ssm.state_size")?.unwrap_or(0));
            let value_dim = count("ssm.inner_size")?.unwrap_or(0) / heads;
            all.values = Some(Values { heads, heads_key, key_rows, value_dim });
        }
        Ok(all)
    }

    /// From a folder to a GGUF file, of a tensor of these sizes, fastest first; an error says what
    /// does not allow it.
    pub(crate) fn of_tensor(
        &self,
        name: &str,
        dims: &[u64],
    ) -> Result<Option<Order>, &'static str> {
        // A bias is a row for each of its numbers.
        let (rows, cols) = match dims {
            &[count] => (count, 1),
            dims => (dims[1..].iter().product(), dims[0]),
        };
        let is = |stem: &str| name.contains(&format!(".{stem}."));
        if let Some(pairs) = &self.pairs {
            let heads = if is("attn_q") {
                pairs.heads
            } else if is("attn_k") {
                pairs.heads_kv
            } else {
                return Ok(None);
            };
            if !rows.is_multiple_of(2 * heads) {
                return Err("its rows, no pairs in each head, do not allow");
            }
            return Ok(Some(Order::Rows(side_by_side(rows as usize, heads as usize))));
        }
        let Some(values) = &self.values else { return Ok(None) };
        let (head, all) = (values.value_dim, values.heads.saturating_mul(values.value_dim));
        if is("ssm_out") {
            return values.in_turn(0, head, cols).map(|places| Some(Order::Columns(places)));
        }
        let (before, head) = match () {
            // Queries and keys come first, where it is not the product with them of an attention.
            () if is("attn_qkv") || is("ssm_conv1d") => (2 * values.key_rows, head),
            // Attention has gates of another size, under another name.
            () if is("attn_gate") && rows == all => (0, head),
            () if is("ssm_alpha") || is("ssm_beta") || is("ssm_dt") => (0, 1),
            () if name.ends_with(".ssm_a") => (0, 1),
            () => return Ok(None),
        };
        values.in_turn(before, head, rows).map(|places| Some(Order::Rows(places)))
    }
}

impl Values {
    /// Places of `count` rows, of which the first `before` stay.
    fn in_turn(&self, before: u64, head_rows: u64, count: u64) -> Result<Vec<usize>, &'static str> {
        let fits = self.heads.checked_mul(head_rows).and_then(|rows| rows.checked_add(before));
        if fits != Some(count) || !self.heads.is_multiple_of(self.heads_key) {
            return Err("its size, which the heads of values do not divide, does not allow");
        }
        let of_key = self.heads / self.heads_key;
        let heads =
            (0..self.heads).map(|head| head % self.heads_key * of_key + head / self.heads_key);
        let rows = heads.flat_map(|head| (0..head_rows).map(move |row| head * head_rows + row));
        let all = (0..before).chain(rows.map(|row| before + row));
        Ok(all.map(|row| row as usize).collect())
    }
}

/// Rows of each head: the first of its first half, the first of its second half, and so on.
fn side_by_side(rows: usize, heads: usize) -> Vec<usize> {
    let half = rows / heads / 2;
    let place = |row: usize| {
        let (head, place) = (row / (2 * half), row % (2 * half));
        head * 2 * half + place % 2 * half + place / 2
    };
    (0..rows).map(place).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn heads_of_values_come_in_turn() {
        // Six heads of two values that share three keys of one row.
        let values = Values { heads: 6, heads_key: 3, key_rows: 3, value_dim: 2 };
        let order = HeadOrder { pairs: None, values: Some(values) };
        let rows = |name: &str, rows: u64| match order.of_tensor(name, &[4, rows]).unwrap() {
            Some(Order::Rows(rows)) => rows,
            _ => panic!("{name} stays"),
        };
        assert_eq!(rows("blk.0.ssm_a", 6), [0, 2, 4, 1, 3, 5]);
        assert_eq!(rows("blk.0.ssm_dt.bias", 6), [0, 2, 4, 1, 3, 5]);
        let in_pairs = [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11];
        assert_eq!(rows("blk.0.attn_gate.weight", 12), in_pairs);
        let behind = in_pairs.iter().map(|row| row + 6);
        let all: Vec<usize> = (0..6).chain(behind).collect();
        assert_eq!(rows("blk.0.attn_qkv.weight", 18), all);
        assert_eq!(rows("blk.0.ssm_conv1d.weight", 18), all);
        match order.of_tensor("blk.0.ssm_out.weight", &[12, 5]).unwrap() {
            Some(Order::Columns(columns)) => assert_eq!(columns, in_pairs),
            _ => panic!("its columns change places"),
        }
        assert!(order.of_tensor("blk.0.ssm_norm.weight", &[2]).unwrap().is_none());
        assert!(order.of_tensor("blk.0.attn_qkv.weight", &[4, 17]).is_err());
    }

    #[test]
    fn columns_change_places_in_every_row() {
        let bytes: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
        let tensor = Stored { format: QuantFormat::F32, cols: 3, bytes: &bytes };
        let (ordered, format) = Order::Columns(vec![2, 0, 1]).apply(&tensor);
        let expected = [2f32, 0.0, 1.0, 5.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes());
        assert_eq!((&ordered, format), (&expected.collect(), QuantFormat::F32));
        let tensor = Stored { format, cols: 3, bytes: &ordered };
        let (back, _) = Order::Columns(vec![2, 0, 1]).inverted().apply(&tensor);
        assert_eq!(back, bytes);
    }
}
