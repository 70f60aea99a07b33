//! Embedding: `output[t] = scale * table[token[t]]`.
//!
//! Rows outside the table are the caller's mistake and are refused at admission; here they assert.

/// `table: [vocabulary, width]`, `output: [tokens, width]`.
pub fn reference(table: &[f32], width: usize, tokens: &[u32], scale: f32, output: &mut [f32]) {
    assert_eq!(output.len(), tokens.len() * width, "one row a token");
    for (row, &token) in output.chunks_exact_mut(width).zip(tokens) {
        let start = token as usize * width;
        for (out, value) in row.iter_mut().zip(&table[start..start + width]) {
            *out = scale * value;
        }
    }
}
