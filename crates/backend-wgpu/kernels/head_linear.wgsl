// Each head's columns by a matrix of its own: y[t, h, o] = sum_i x[t, h, i] w[h, o, i].
//
// A workgroup a token and eight rows; sixteen lanes share a row, one unit of 32 columns after the
// other in turn, and are added lane after lane.

struct Params {
    matrix: Matrix,
    // The first row of this part in the matrix.
    first: u32,
    // Of the first head's first column.
    input: u32,
    input_stride: u32,
    input_head: u32,
    width: u32,
    output: u32,
    output_stride: u32,
    output_head: u32,
    // Rows of a head's matrix.
    rows: u32,
}
var<immediate> p: Params;

const LANES = 16u;
const ROWS = 8u;

var<workgroup> partial: array<f32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = local / ROWS;
    let row = min(group.x * ROWS + local % ROWS, p.matrix.rows - 1u);
    let head = (p.first + row) / p.rows;
    let source = p.input + group.y * p.input_stride + head * p.input_head;
    var sum = vec4<f32>(0.0);
    for (var unit = lane; unit < p.matrix.units; unit += LANES) {
        let codes = codes_of(row, unit);
        for (var j = 0u; j < 4u; j++) {
            let w = eight(codes, j);
            let column = unit * 32u + j * 8u;
            sum = fma(w.low, columns(source, column), sum);
            sum = fma(w.high, columns(source, column + 4u), sum);
        }
    }
    partial[local % ROWS * LANES + lane] = across(sum);
    workgroupBarrier();
    let own = group.x * ROWS + local;
    if local >= ROWS || own >= p.matrix.rows {
        return;
    }
    var total = 0.0;
    for (var i = 0u; i < LANES; i++) {
        total += partial[local * LANES + i];
    }
    let at = p.first + own;
    let to = p.output + group.y * p.output_stride + at / p.rows * p.output_head;
    put(to + at % p.rows, total);
}

// Behind the head's columns are those of others.
fn columns(source: u32, column: u32) -> vec4<f32> {
    var values = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) {
        if column + i < p.width {
            values[i] = work[source + column + i];
        }
    }
    return values;
}
