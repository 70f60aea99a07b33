// Products of up to eight tokens by matrix units, for codes of four bits: a slice of the columns each
// 32 lanes, of TILES times 16 rows.
//
// Reads each weight once, and straight into the units: lanes have codes as they lie in memory, shuffle
// them to where the units want them and decode them there. Two chunks are under way at once, of one
// tile or of two. The order of sums is that of the other kernels of units, matrix_units.wgsli.

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

const SLICES = 8u;
const SUMS = 256u;
const ROWS = 16u * TILES;
// Chunks that one turn takes.
const AHEAD = 3u - TILES;

var<workgroup> sums: array<f32, TILES * SLICES * SUMS>;

// Lane 4 g + t; `slot` is its number.
struct Lane {
    slot: u32,
    g: u32,
    t: u32,
}

// 64 columns of 16 rows: a row's unit a lane, the first 16 lanes the first unit's.
struct Chunk {
    codes: vec4<u32>,
    scales: u32,
}

// Pairs of inputs, of each 16 columns: the lane's first pair, then the one eight columns on.
struct Inputs {
    low: vec4<u32>,
    high: vec4<u32>,
}

struct Scales {
    upper: vec2<f16>,
    lower: vec2<f16>,
}

fn chunks_of() -> u32 {
    return (p.matrix.units + 1u) / 2u;
}

// Zeros beyond `end`, and beyond the matrix: a weight whose scale is zero is zero.
fn load_chunk(tile: u32, chunk: u32, end: u32, lane: Lane) -> Chunk {
    let here = min(chunk, chunks_of() - 1u);
    let unit = min(2u * here + lane.slot / 16u, p.matrix.units - 1u);
    let row = tile * 16u + lane.slot % 16u;
    let at = place_of(row, unit, p.matrix.units);
    var scales = weights[p.matrix.scales + place_of(row, here, chunks_of())];
    if HAS_BIAS {
        scales = weights[p.matrix.scales + at];
    }
    let is_there = chunk < end && 2u * here + lane.slot / 16u < p.matrix.units;
    return Chunk(weights4[at], select(0u, scales, is_there || (!HAS_BIAS && chunk < end)));
}

// One token's by shuffles: its lane has the pair of its number. Of more, lane by lane.
fn load_inputs(chunk: u32, token: u32, lane: Lane) -> Inputs {
    let here = 32u * min(chunk, chunks_of() - 1u);
    var inputs: Inputs;
    if TOKENS == 1u {
        let pair = here + lane.slot;
        let pairs = 16u * p.matrix.units;
        let word = rounded_words[(p.input + token * p.input_stride) / 2u + min(pair, pairs - 1u)];
        inputs.low.x = select(0u, word, pair < pairs);
        return inputs;
    }
    let at = (p.input + min(token + lane.g, p.tokens - 1u) * p.input_stride) / 2u + here + lane.t;
    inputs.low = vec4<u32>(rounded_words[at], rounded_words[at + 8u], 0u, 0u);
    inputs.high = vec4<u32>(rounded_words[at + 4u], rounded_words[at + 12u], 0u, 0u);
    if here + 32u <= 16u * p.matrix.units {
        inputs.low = vec4<u32>(inputs.low.xy, rounded_words[at + 16u], rounded_words[at + 24u]);
        inputs.high = vec4<u32>(inputs.high.xy, rounded_words[at + 20u], rounded_words[at + 28u]);
    }
    return inputs;
}

fn inputs_of(inputs: Inputs, block: u32, lane: Lane) -> coop_mat16x16<f16, B> {
    var low = inputs.low[block];
    var high = inputs.high[block];
    if TOKENS == 1u {
        low = subgroupShuffle(inputs.low.x, 8u * block + lane.t);
        high = subgroupShuffle(inputs.low.x, 8u * block + 4u + lane.t);
    }
    let a = halves_in(low);
    let b = halves_in(high);
    // What columns beyond the eighth say is not used.
    return fragment_b(a, b, a, b);
}

fn scales_of(scales: u32, unit: u32, lane: Lane) -> Scales {
    let source = lane.g + select(0u, 16u * unit, HAS_BIAS);
    let upper = halves_in(subgroupShuffle(scales, source));
    let lower = halves_in(subgroupShuffle(scales, source + 8u));
    if HAS_BIAS {
        return Scales(upper, lower);
    }
    return Scales(vec2<f16>(upper[unit]), vec2<f16>(lower[unit]));
}

// As `two` of matrix_units.wgsli.
fn weights_of(word: u32, pair: vec2<f16>, lane: Lane) -> vec2<f16> {
    let above = halves_in(((word >> (4u * lane.t)) & 0x000f000fu) | 0x64006400u);
    if HAS_BIAS {
        return fma(above - vec2<f16>(1024.0h), pair.xx, pair.yy);
    }
    return (above - vec2<f16>(f16(1024.0 + POINT))) * pair.xx;
}

// 16 columns, of which `first` and `second` are the words of eight.
fn rows_of(
    first: u32, second: u32, unit: u32, scales: Scales, lane: Lane,
) -> coop_mat16x16<f16, A> {
    let source = 16u * unit + lane.g;
    return fragment_a(
        weights_of(subgroupShuffle(first, source), scales.upper, lane),
        weights_of(subgroupShuffle(second, source), scales.upper, lane),
        weights_of(subgroupShuffle(first, source + 8u), scales.lower, lane),
        weights_of(subgroupShuffle(second, source + 8u), scales.lower, lane));
}

fn add_chunk(
    sum: coop_mat16x16<f32, C>, chunk: Chunk, inputs: Inputs, lane: Lane,
) -> coop_mat16x16<f32, C> {
    let x0 = inputs_of(inputs, 0u, lane);
    let x1 = inputs_of(inputs, 1u, lane);
    let x2 = inputs_of(inputs, 2u, lane);
    let x3 = inputs_of(inputs, 3u, lane);
    let one = scales_of(chunk.scales, 0u, lane);
    let other = scales_of(chunk.scales, 1u, lane);
    let a = rows_of(chunk.codes.x, chunk.codes.y, 0u, one, lane);
    let b = rows_of(chunk.codes.z, chunk.codes.w, 0u, one, lane);
    let c = rows_of(chunk.codes.x, chunk.codes.y, 1u, other, lane);
    let d = rows_of(chunk.codes.z, chunk.codes.w, 1u, other, lane);
    let first = coopMultiplyAdd(b, x1, coopMultiplyAdd(a, x0, sum));
    return coopMultiplyAdd(d, x3, coopMultiplyAdd(c, x2, first));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let slice = local / 32u;
    let slot = local % 32u;
    let lane = Lane(slot, slot / 4u, slot % 4u);
    let token = group.y * TOKENS;
    let each = (chunks_of() + SLICES - 1u) / SLICES;
    let begin = slice * each;
    let end = min(begin + each, chunks_of());
    let tile = group.x * TILES;
    // The second chunk of a turn: the other tile's, or the next of the only one.
    let other = min(tile + TILES - 1u, (p.matrix.rows - 1u) / 16u);
    let further = AHEAD - 1u;
    var upper: coop_mat16x16<f32, C>;
    var lower: coop_mat16x16<f32, C>;
    var first = load_chunk(tile, begin, end, lane);
    var second = load_chunk(other, begin + further, end, lane);
    var inputs = load_inputs(begin, token, lane);
    var inputs_further = load_inputs(begin + further, token, lane);
    for (var turn = 0u; turn < each; turn += AHEAD) {
        let next = begin + turn + AHEAD;
        let own = first;
        let x = inputs;
        first = load_chunk(tile, next, end, lane);
        inputs = load_inputs(next, token, lane);
        upper = add_chunk(upper, own, x, lane);
        let beside = second;
        second = load_chunk(other, next + further, end, lane);
        if TILES == 2u {
            lower = add_chunk(lower, beside, x, lane);
        } else {
            let y = inputs_further;
            inputs_further = load_inputs(next + further, token, lane);
            upper = add_chunk(upper, beside, y, lane);
        }
    }
    coopStore(upper, &sums[slice * SUMS], 16u);
    if TILES == 2u {
        coopStore(lower, &sums[(SLICES + slice) * SUMS], 16u);
    }
    workgroupBarrier();
    give_all(group.x * ROWS, token, local);
}

// Each row and token, or a gate with its up, from the slices' sums.
fn give_all(first: u32, token: u32, local: u32) {
    for (var i = local; i < ROWS * TOKENS; i += 256u) {
        let own = i % ROWS;
        let row = first + own;
        let t = token + i / ROWS;
        let source = own / 16u * SLICES * SUMS + i / ROWS * 16u + own % 16u;
        if row >= p.matrix.rows || t >= p.tokens {
            continue;
        }
        if p.parts[0].mode < GATE_SILU {
            give(p.first + row, t, slices_of(source));
        } else if (row & 1u) == 0u {
            give_gated(p.first + row, t, slices_of(source), slices_of(source + 1u));
        }
    }
}

fn slices_of(source: u32) -> f32 {
    var total = 0.0;
    for (var slice = 0u; slice < SLICES; slice++) {
        total += sums[slice * SUMS + source];
    }
    return total;
}
