// Products of a few tokens: y[t, o] = sum_i x[t, i] w[o, i], of up to four tensors at once.
//
// Reads each weight once for TOKENS tokens, so a step of one token is bound by memory: what it moves
// is the matrix. Sixteen lanes share a row, one unit of 32 columns after the other in turn; inputs
// come by way of workgroup memory, for lanes want them 128 bytes apart. The order of sums is that of
// linear.tiled.wgsl: by lanes, each by units in four sums, then lane after lane.

struct Params {
    matrix: Matrix,
    // The first row of this part in the matrix.
    first: u32,
    input: u32,
    input_stride: u32,
    tokens: u32,
    // What inputs in f16 are multiplied by, and gated outputs before they are rounded.
    input_scale: f32,
    gated_scale: f32,
    parts: array<Part, 4>,
}
var<immediate> p: Params;

const LANES = 16u;
const ROWS = 8u;
// Of a unit's inputs, four words more than it has: neighbors' loads fall into different banks.
const STRIDE = 9u;

var<workgroup> inputs: array<vec4<f32>, TOKENS * LANES * STRIDE>;
var<workgroup> partial: array<f32, 128u * TOKENS>;
var<workgroup> totals: array<f32, ROWS * TOKENS>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = local / ROWS;
    let own = local % ROWS;
    let row = min(group.x * ROWS + own, p.matrix.rows - 1u);
    let token = group.y * TOKENS;
    var sums: array<vec4<f32>, TOKENS>;
    for (var base = 0u; base < p.matrix.units; base += LANES) {
        let unit = base + lane;
        // Begun before the inputs are waited for.
        let loaded = load_codes(row, min(unit, p.matrix.units - 1u));
        workgroupBarrier();
        if base + local / 8u < p.matrix.units {
            for (var t = 0u; t < TOKENS; t++) {
                let first = p.input + min(token + t, p.tokens - 1u) * p.input_stride;
                let to = (t * LANES + local / 8u) * STRIDE + local % 8u;
                inputs[to] = work4[first / 4u + base * 8u + local];
            }
        }
        workgroupBarrier();
        if unit < p.matrix.units {
            let codes = with_scales(loaded, unit);
            for (var j = 0u; j < 4u; j++) {
                let w = eight(codes, j);
                for (var t = 0u; t < TOKENS; t++) {
                    let x = (t * LANES + lane) * STRIDE + j * 2u;
                    sums[t] = fma(w.low, inputs[x], sums[t]);
                    sums[t] = fma(w.high, inputs[x + 1u], sums[t]);
                }
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
