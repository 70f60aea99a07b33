// The largest of a row's logits, and the first of equals: a workgroup a row and a part of its columns.
//
// What is no number is larger than any, so that whoever chooses between parts sees it.

struct Params {
    logits: u32,
    stride: u32,
    width: u32,
    // Columns of a part, a multiple of four.
    each: u32,
    // Of each row, PARTS pairs: the column, or -1 where something is no number, and its logit.
    chosen: u32,
}
var<immediate> p: Params;

const PARTS = 8u;
const NO_NUMBER = 0xffffffffu;
// Four logits each that are asked for at once.
const AHEAD = 4u;

var<workgroup> keys: array<u32, THREADS>;
var<workgroup> columns: array<u32, THREADS>;

// Larger where the number is; by bits, for drivers believe that everything is a number.
fn key_of(bits: u32) -> u32 {
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u {
        return NO_NUMBER;
    }
    // There is one zero.
    return select(0x80000000u + size, 0x80000000u - size, bits != size);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = p.logits + group.x * p.stride;
    // Where nothing is left for a part, it has the last columns once more.
    let first = min(group.y * p.each, (p.width - 1u) / 4u * 4u);
    let end = min(first + p.each, p.width);
    var key = 0u;
    var chosen = first;
    for (var begin = first + 4u * local; begin < end; begin += AHEAD * 4u * THREADS) {
        var bits: array<vec4<u32>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            // Padding, where a row ends within four; where it ended before, the same once more.
            let at = min(begin + i * 4u * THREADS, (end - 1u) / 4u * 4u);
            bits[i] = bitcast<vec4<u32>>(work4[(row + at) / 4u]);
        }
        for (var i = 0u; i < 4u * AHEAD; i++) {
            let column = begin + i / 4u * 4u * THREADS + i % 4u;
            let own = key_of(bits[i / 4u][i % 4u]);
            if column < end && own > key {
                key = own;
                chosen = column;
            }
        }
    }
    keys[local] = key;
    columns[local] = chosen;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if local < half {
            let other = keys[local + half];
            let is_first = other == keys[local] && columns[local + half] < columns[local];
            if other > keys[local] || is_first {
                keys[local] = other;
                columns[local] = columns[local + half];
            }
        }
        workgroupBarrier();
    }
    if local == 0u {
        let to = p.chosen + 2u * (group.x * PARTS + group.y);
        work[to] = select(f32(columns[0]), -1.0, keys[0] == NO_NUMBER);
        work[to + 1u] = work[row + columns[0]];
    }
}
