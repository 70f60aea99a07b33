//! What do the bytes of a stored weight row mean?
//!
//! A row is a whole number of blocks; a block holds `block_elements` weights in `block_bytes` bytes.
//! Most formats are affine: `weight = scale * code + bias`, per group, and backends repack them so.

/// How the elements of a stored tensor row are encoded. Block formats are those of GGUF v3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}
