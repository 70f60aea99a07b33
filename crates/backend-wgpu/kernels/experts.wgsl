// Products of the experts that a token goes to: a workgroup a token, choice and eight rows of the
// expert's matrix, in the order of sums of linear.wgsl.

struct Params {
    matrix: Matrix,
    // The first row of this part in the matrix.
    first: u32,
    input: u32,
    input_stride: u32,
    // Whether each choice has an input of its own, and not each token.
    is_by_choice: u32,
    choices: u32,
    choices_stride: u32,
    // Rows of one expert.
    rows: u32,
    output: u32,
    output_stride: u32,
    mode: u32,
    // Of the gate or the only matrix, and of the up.
    bias: u32,
    up_bias: u32,
    used: u32,
}
var<immediate> p: Params;

const LANES = 16u;
const ROWS = 8u;

var<workgroup> partial: array<f32, 128>;
var<workgroup> totals: array<f32, ROWS>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.y;
    let choice = token * p.used + group.z;
    let expert = u32(work[p.choices + token * p.choices_stride + 2u * group.z]);
    let lane = local / ROWS;
    // Rows of other parts are left to their launches.
    let row = expert * p.rows + group.x * ROWS + local % ROWS - p.first;
    let source = p.input + select(token, choice, p.is_by_choice == 1u) * p.input_stride;
    var sum = vec4<f32>(0.0);
    if row < p.matrix.rows && group.x * ROWS + local % ROWS < p.rows {
        for (var unit = lane; unit < p.matrix.units; unit += LANES) {
            let codes = codes_of(row, unit);
            for (var j = 0u; j < 4u; j++) {
                let w = eight(codes, j);
                let at = source / 4u + unit * 8u + j * 2u;
                sum = fma(w.low, work4[at], sum);
                sum = fma(w.high, work4[at + 1u], sum);
            }
        }
    }
    partial[local % ROWS * LANES + lane] = across(sum);
    workgroupBarrier();
    if local < ROWS {
        var total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += partial[local * LANES + i];
        }
        totals[local] = total;
    }
    workgroupBarrier();
    let own = group.x * ROWS + local;
    if local >= ROWS || own >= p.rows || expert * p.rows + own - p.first >= p.matrix.rows {
        return;
    }
    let to = p.output + choice * p.output_stride;
    if p.mode == STORE {
        put(to + own, totals[local] + bias_at(p.bias, expert * p.rows + own));
    } else if (local & 1u) == 0u {
        let pair = (expert * p.rows + own) / 2u;
        let gate = totals[local] + bias_at(p.bias, pair);
        let up = totals[local + 1u] + bias_at(p.up_bias, pair);
        put(to + own / 2u, join(p.mode, gate, up));
    }
}

fn bias_at(bias: u32, row: u32) -> f32 {
    if bias == NONE {
        return 0.0;
    }
    return vectors[bias + row];
}
