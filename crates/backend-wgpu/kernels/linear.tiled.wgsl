// Products of many tokens: as linear.wgsl, by tiles of 32 rows and 32 tokens in workgroup memory.
//
// A weight is decoded once for 32 tokens; each invocation has 4 rows and 4 tokens. The order of sums
// is that of linear.wgsl: columns are walked lane by lane, so that a lane's sum is finished before
// the next begins.

struct Params {
    matrix: Matrix,
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
// Four words more than a unit: neighbors' loads fall into different banks.
const STRIDE = 9u;

var<workgroup> tile_w: array<vec4<f32>, 32u * STRIDE>;
var<workgroup> tile_x: array<vec4<f32>, 32u * STRIDE>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let load_row = min(group.x * 32u + local / 2u, p.matrix.rows - 1u);
    let load_token = min(group.y * 32u + local / 2u, p.tokens - 1u);
    let load_input = (p.input + load_token * p.input_stride) / 4u + (local & 1u) * 4u;
    let load_to = (local / 2u) * STRIDE + (local & 1u) * 4u;
    let rows = (local / 8u) * 4u;
    let token = local % 8u;
    var totals: array<vec4<f32>, 4>;
    for (var lane = 0u; lane < LANES; lane++) {
        // Of row i and token j, each in four parts.
        var sums: array<array<vec4<f32>, 4>, 4>;
        for (var unit = lane; unit < p.matrix.units; unit += LANES) {
            let codes = codes_of(load_row, unit);
            let first = eight(codes, 2u * (local & 1u));
            let second = eight(codes, 2u * (local & 1u) + 1u);
            workgroupBarrier();
            tile_w[load_to] = first.low;
            tile_w[load_to + 1u] = first.high;
            tile_w[load_to + 2u] = second.low;
            tile_w[load_to + 3u] = second.high;
            for (var k = 0u; k < 4u; k++) {
                tile_x[load_to + k] = work4[load_input + unit * 8u + k];
            }
            workgroupBarrier();
            for (var k = 0u; k < 8u; k++) {
                var x: array<vec4<f32>, 4>;
                for (var j = 0u; j < 4u; j++) {
                    x[j] = tile_x[(token + 8u * j) * STRIDE + k];
                }
                for (var i = 0u; i < 4u; i++) {
                    let w = tile_w[(rows + i) * STRIDE + k];
                    for (var j = 0u; j < 4u; j++) {
                        sums[i][j] = fma(w, x[j], sums[i][j]);
                    }
                }
            }
        }
        for (var i = 0u; i < 4u; i++) {
            for (var j = 0u; j < 4u; j++) {
                totals[i][j] += across(sums[i][j]);
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let part = group.x * 32u + rows + i;
        for (var j = 0u; j < 4u; j++) {
            let t = group.y * 32u + token + 8u * j;
            if t >= p.tokens || part >= p.matrix.rows {
                continue;
            }
            let at = p.first + part;
            if p.parts[0].mode < GATE_SILU {
                give(at, t, totals[i][j]);
            } else if (i & 1u) == 0u {
                give_gated(at, t, totals[i][j], totals[i + 1u][j]);
            }
        }
    }
}
