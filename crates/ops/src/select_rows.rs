//! Row selection: only rows that are sampled need logits; a prompt's other rows stop here.

/// `input: [tokens, width]`, `output: [selected, width]`.
pub fn reference(input: &[f32], width: usize, selected: &[u32], output: &mut [f32]) {
    assert_eq!(output.len(), selected.len() * width, "one row for each selected index");
    for (row, &index) in output.chunks_exact_mut(width).zip(selected) {
        let start = index as usize * width;
        row.copy_from_slice(&input[start..start + width]);
    }
}
