// The rows of a text to the one that stands for it: ops::pool_rows. A workgroup a row of the step
// and 64 columns; what later steps need of this one is kept for its slot.

struct Params {
    input: u32,
    input_stride: u32,
    kept: u32,
    kept_stride: u32,
    output: u32,
    output_stride: u32,
    width: u32,
    pooling: u32,
    // Where the step's rows are in `step`: five words each.
    rows: u32,
}
var<immediate> p: Params;

const FIRST = 0u;
const MEAN = 2u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = p.rows + 5u * group.x;
    let token = step[row];
    let length = step[row + 1u];
    let start = step[row + 2u];
    let slot = step[row + 3u];
    let place = step[row + 4u];
    let column = group.y * 64u + local;
    if column >= p.width {
        return;
    }
    let source = p.input + token * p.input_stride + column;
    let at = p.kept + slot * p.kept_stride + column;
    var kept = select(work[at], 0.0, start == 0u);
    if p.pooling == MEAN {
        for (var i = 0u; i < length; i++) {
            kept += work[source + i * p.input_stride];
        }
    } else if p.pooling == FIRST {
        if start == 0u {
            kept = work[source];
        }
    } else {
        kept = work[source + (length - 1u) * p.input_stride];
    }
    put(at, kept);
    if place != NONE {
        let value = select(kept, kept / f32(start + length), p.pooling == MEAN);
        put(p.output + place * p.output_stride + column, value);
    }
}
