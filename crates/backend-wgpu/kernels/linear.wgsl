// Products of a few tokens: y[t, o] = sum_i x[t, i] w[o, i], of up to four tensors at once.
//
// Reads each weight once for TOKENS tokens, so a step of one token is bound by memory: what it moves
// is the matrix. Sixteen lanes share a row, one unit of 32 columns after the other in turn. The order
// of sums is that of linear.tiled.wgsl: by lanes, each by units in four sums, then lane after lane.

struct Params {
    matrix: Matrix,
    // The first row of this part in the matrix.
    first: u32,
    input: u32,
    input_stride: u32,
    tokens: u32,
    parts: array<Part, 4>,
}
var<immediate> p: Params;

const LANES = 16u;
const ROWS = 4u;

var<workgroup> partial: array<f32, 64u * TOKENS>;
var<workgroup> totals: array<f32, ROWS * TOKENS>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = local % LANES;
    let own = local / LANES;
    let row = min(group.x * ROWS + own, p.matrix.rows - 1u);
    let token = group.y * TOKENS;
    var sums: array<vec4<f32>, TOKENS>;
    var inputs: array<u32, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
        inputs[t] = (p.input + min(token + t, p.tokens - 1u) * p.input_stride) / 4u;
    }
    for (var unit = lane; unit < p.matrix.units; unit += LANES) {
        let codes = codes_of(row, unit);
        for (var j = 0u; j < 4u; j++) {
            let w = eight(codes, j);
            for (var t = 0u; t < TOKENS; t++) {
                let x = inputs[t] + unit * 8u + j * 2u;
                sums[t] = fma(w.low, work4[x], sums[t]);
                sums[t] = fma(w.high, work4[x + 1u], sums[t]);
            }
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        partial[(t * ROWS + own) * LANES + lane] = across(sums[t]);
    }
    workgroupBarrier();
    if local < ROWS * TOKENS {
        var total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += partial[local * LANES + i];
        }
        totals[local] = total;
    }
    workgroupBarrier();
    let t = local / ROWS;
    let part = group.x * ROWS + local % ROWS;
    if local >= ROWS * TOKENS || token + t >= p.tokens || part >= p.matrix.rows {
        return;
    }
    let at = p.first + part;
    if p.parts[0].mode < GATE_SILU {
        give(at, token + t, totals[local]);
    } else if (at & 1u) == 0u {
        give_gated(at, token + t, totals[local], totals[local + 1u]);
    }
}
