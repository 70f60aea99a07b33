// Products of up to 16 tokens by matrix units, of arranged weights: a slice of the columns each 32
// lanes, of TILES times 16 rows.
//
// Reads each weight once, and straight into the units: lanes have the codes of their own elements. The
// chunks of AHEAD turns are under way at once. A workgroup has several tiles where there are more than
// a card runs at once: the next one's weights are under way while one's sums are added. The order of
// sums is that of the other kernels of units, matrix_units.wgsli.

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

const SLICES = 8u;
const SUMS = 256u;
const ROWS = 16u * TILES;

var<workgroup> sums: array<f32, TILES * SLICES * SUMS>;

// Lane 4 g + t; `slot` is its number.
struct Lane {
    slot: u32,
    g: u32,
    t: u32,
}

// 64 columns of 16 rows: the lane's codes and the scales of its rows, see arranged.wgsli.
struct Chunk {
    codes: Arranged,
    scales: vec4<u32>,
}

// Pairs of inputs, of each 16 columns: the lane's first pair, then the one eight columns on; of its
// token and of the eighth behind it.
struct Inputs {
    low: vec4<u32>,
    high: vec4<u32>,
    low_beside: vec4<u32>,
    high_beside: vec4<u32>,
}

fn chunks_of() -> u32 {
    return (p.matrix.units + 1u) / 2u;
}

// As it lies: whoever works on what was asked for waits for it.
fn load_chunk(tile: u32, chunk: u32, lane: Lane) -> Chunk {
    let scales = arranged_scales(tile, chunk, lane.g);
    return Chunk(arranged_codes(tile, chunk, lane.slot), scales);
}

fn words_of(token: u32, here: u32, lane: Lane) -> array<vec4<u32>, 2> {
    let first = (p.input + min(token, p.tokens - 1u) * p.input_stride) / 2u + here + lane.t;
    return array<vec4<u32>, 2>(
        vec4<u32>(rounded_words[first], rounded_words[first + 8u],
            rounded_words[first + 16u], rounded_words[first + 24u]),
        vec4<u32>(rounded_words[first + 4u], rounded_words[first + 12u],
            rounded_words[first + 20u], rounded_words[first + 28u]));
}

// One token's by shuffles: its lane has the pair of its number. Of more, lane by lane.
fn load_inputs(chunk: u32, token: u32, lane: Lane) -> Inputs {
    let here = 32u * chunk;
    var inputs: Inputs;
    if TOKENS == 1u {
        let at = (p.input + token * p.input_stride) / 2u + here + lane.slot;
        inputs.low.x = rounded_words[at];
        return inputs;
    }
    let own = words_of(token + lane.g, here, lane);
    inputs.low = own[0];
    inputs.high = own[1];
    if TOKENS > 8u {
        let beside = words_of(token + lane.g + 8u, here, lane);
        inputs.low_beside = beside[0];
        inputs.high_beside = beside[1];
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
    if TOKENS > 8u {
        let c = halves_in(inputs.low_beside[block]);
        return fragment_b(a, b, c, halves_in(inputs.high_beside[block]));
    }
    // What columns beyond the eighth say is not used.
    return fragment_b(a, b, a, b);
}

// Nothing beyond the slice's columns: a weight whose scale is zero is zero.
fn add_chunk(
    sum: coop_mat16x16<f32, C>,
    chunk: Chunk,
    is_own: bool,
    x0: coop_mat16x16<f16, B>,
    x1: coop_mat16x16<f16, B>,
    x2: coop_mat16x16<f16, B>,
    x3: coop_mat16x16<f16, B>,
) -> coop_mat16x16<f32, C> {
    let scales = select(vec4<u32>(0u), chunk.scales, is_own);
    let first = pairs_of_rows(scales, 0u);
    let second = pairs_of_rows(scales, 1u);
    let a = rows_of(chunk.codes, 0u, first);
    let b = rows_of(chunk.codes, 1u, first);
    let c = rows_of(chunk.codes, 2u, second);
    let d = rows_of(chunk.codes, 3u, second);
    let half = coopMultiplyAdd(b, x1, coopMultiplyAdd(a, x0, sum));
    return coopMultiplyAdd(d, x3, coopMultiplyAdd(c, x2, half));
}

// What a turn multiplies: chunks of the upper tile and of the lower, if there are two, with their
// inputs.
struct Turn {
    upper: Chunk,
    lower: Chunk,
    inputs: Inputs,
}

// What a slice has of each of its workgroup's tiles: some chunks, in so many turns. Those beyond its
// end add nothing.
struct Share {
    token: u32,
    begin: u32,
    end: u32,
    turns: u32,
    // Tiles of all workgroups, and how far this one's are apart.
    tiles: u32,
    stride: u32,
}

// Which is to be asked for next.
struct Next {
    tile: u32,
    turn: u32,
}

// Behind the last turn of all, the same once more: nobody else's is read.
fn behind(next: Next, share: Share) -> Next {
    if next.turn + 1u < share.turns {
        return Next(next.tile, next.turn + 1u);
    }
    if next.tile + share.stride < share.tiles {
        return Next(next.tile + share.stride, 0u);
    }
    return next;
}

fn ask_for(next: Next, share: Share, lane: Lane) -> Turn {
    let chunk = min(share.begin + next.turn, share.end - 1u);
    let tile = next.tile * TILES;
    let upper = load_chunk(tile, chunk, lane);
    var lower: Chunk;
    if TILES == 2u {
        lower = load_chunk(min(tile + 1u, (p.matrix.rows - 1u) / 16u), chunk, lane);
    }
    return Turn(upper, lower, load_inputs(chunk, share.token, lane));
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let slice = local / 32u;
    let slot = local % 32u;
    let lane = Lane(slot, slot / 4u, slot % 4u);
    let token = group.y * TOKENS;
    let each = (chunks_of() + SLICES - 1u) / SLICES;
    let begin = slice * each;
    let turns = (each + AHEAD - 1u) / AHEAD * AHEAD;
    let tiles = (p.matrix.rows + ROWS - 1u) / ROWS;
    let share = Share(token, begin, min(begin + each, chunks_of()), turns, tiles, groups.x);
    // Turns that are under way, AHEAD of them, of the next tile as well. Written out: in a list, the
    // driver's compiler keeps them in memory.
    var next = Next(group.x, 0u);
    var first = ask_for(next, share, lane);
    next = behind(next, share);
    var second = first;
    var third = first;
    var fourth = first;
    if AHEAD > 1u {
        second = ask_for(next, share, lane);
        next = behind(next, share);
    }
    if AHEAD > 2u {
        third = ask_for(next, share, lane);
        next = behind(next, share);
        fourth = ask_for(next, share, lane);
        next = behind(next, share);
    }
    for (var tile = group.x; tile < tiles; tile += groups.x) {
        var upper: coop_mat16x16<f32, C>;
        var lower: coop_mat16x16<f32, C>;
        for (var turn = 0u; turn < turns; turn += AHEAD) {
            let chunk = begin + turn;
            {
                let own = first;
                let is_own = chunk < share.end;
                let x0 = inputs_of(own.inputs, 0u, lane);
                let x1 = inputs_of(own.inputs, 1u, lane);
                let x2 = inputs_of(own.inputs, 2u, lane);
                let x3 = inputs_of(own.inputs, 3u, lane);
                first = ask_for(next, share, lane);
                next = behind(next, share);
                upper = add_chunk(upper, own.upper, is_own, x0, x1, x2, x3);
                if TILES == 2u {
                    lower = add_chunk(lower, own.lower, is_own, x0, x1, x2, x3);
                }
            }
            if AHEAD > 1u {
                let own = second;
                let is_own = chunk + 1u < share.end;
                let x0 = inputs_of(own.inputs, 0u, lane);
                let x1 = inputs_of(own.inputs, 1u, lane);
                let x2 = inputs_of(own.inputs, 2u, lane);
                let x3 = inputs_of(own.inputs, 3u, lane);
                second = ask_for(next, share, lane);
                next = behind(next, share);
                upper = add_chunk(upper, own.upper, is_own, x0, x1, x2, x3);
                if TILES == 2u {
                    lower = add_chunk(lower, own.lower, is_own, x0, x1, x2, x3);
                }
            }
            if AHEAD > 2u {
                let own = third;
                let is_own = chunk + 2u < share.end;
                let x0 = inputs_of(own.inputs, 0u, lane);
                let x1 = inputs_of(own.inputs, 1u, lane);
                let x2 = inputs_of(own.inputs, 2u, lane);
                let x3 = inputs_of(own.inputs, 3u, lane);
                third = ask_for(next, share, lane);
                next = behind(next, share);
                upper = add_chunk(upper, own.upper, is_own, x0, x1, x2, x3);
                if TILES == 2u {
                    lower = add_chunk(lower, own.lower, is_own, x0, x1, x2, x3);
                }
            }
            if AHEAD > 2u {
                let own = fourth;
                let is_own = chunk + 3u < share.end;
                let x0 = inputs_of(own.inputs, 0u, lane);
                let x1 = inputs_of(own.inputs, 1u, lane);
                let x2 = inputs_of(own.inputs, 2u, lane);
                let x3 = inputs_of(own.inputs, 3u, lane);
                fourth = ask_for(next, share, lane);
                next = behind(next, share);
                upper = add_chunk(upper, own.upper, is_own, x0, x1, x2, x3);
                if TILES == 2u {
                    lower = add_chunk(lower, own.lower, is_own, x0, x1, x2, x3);
                }
            }
        }
        coopStore(upper, &sums[slice * SUMS], 16u);
        if TILES == 2u {
            coopStore(lower, &sums[(SLICES + slice) * SUMS], 16u);
        }
        workgroupBarrier();
        give_all(tile * ROWS, token, local);
        workgroupBarrier();
    }
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
    return p.input_scale * total;
}
