// Each value by itself (ops::activate, soft_cap, blend's scale), or with one of another buffer
// (sigmoid_gate, blend, the join of gated_linear): a workgroup a row and 1,024 columns.

struct Params {
    values: u32,
    values_stride: u32,
    other: u32,
    other_stride: u32,
    output: u32,
    output_stride: u32,
    width: u32,
    // As src/row_passes.rs numbers them.
    mode: u32,
    number: f32,
    // Values that share one of the others.
    each: u32,
    // What outputs are multiplied by before they are rounded.
    rounding: f32,
}
var<immediate> p: Params;

const SOFT_CAP = 0u;
const GELU = 1u;
const GELU_TANH = 2u;
const RELU = 3u;
const TANH = 4u;
const SIGMOID_GATE = 5u;
const BLEND = 6u;
const SCALE = 7u;
// Modes of outputs.wgsli from here on: a gate and an up.
const JOIN = 16u;

// As ops::activate has it.
fn erf(value: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(value));
    var sum = 1.061405429 * t;
    sum = (sum - 1.453152027) * t;
    sum = (sum + 1.421413741) * t;
    sum = (sum - 0.284496736) * t;
    sum = (sum + 0.254829592) * t;
    let size = 1.0 - sum * exp(-value * value);
    return select(size, -size, value < 0.0);
}

fn changed(value: f32, row: u32, column: u32) -> f32 {
    switch p.mode {
        case SOFT_CAP: { return capped(value, p.number); }
        case GELU: { return 0.5 * value * (1.0 + erf(value * 0.70710678)); }
        case GELU_TANH: { return join(GATE_GELU, value, 1.0); }
        case RELU: { return select(value, 0.0, value < 0.0); }
        case TANH: { return capped(value, 1.0); }
        case SCALE: { return value * vectors[p.other]; }
        default: {}
    }
    let other = work[p.other + row * p.other_stride + column / p.each];
    switch p.mode {
        case SIGMOID_GATE: { return value / (1.0 + exp(-other)); }
        case BLEND: { return p.number * (value + other); }
        default: { return join(p.mode - JOIN, value, other); }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var i = 0u; i < 4u; i++) {
        let column = group.y * 1024u + i * 256u + local;
        if column < p.width {
            let value = work[p.values + group.x * p.values_stride + column];
            let at = p.output + group.x * p.output_stride + column;
            put_scaled(at, changed(value, group.x, column), p.rounding);
        }
    }
}
