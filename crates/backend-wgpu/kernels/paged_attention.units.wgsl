// Attention over pages by matrix units: a workgroup a tile of a row's tokens with the heads that share
// their keys, 16 queries in all, of which PARTS times 32 lanes each have every PARTS-th block.
//
// Reads each key and value once for a tile, straight into the units, by sixteen bytes a lane: which
// column of a product is which of a head is up to the kernel, as long as queries and keys agree.
// A block of 32 positions is summed by itself, from its own highest score; blocks are added to their
// part in their order, and parts in theirs at the end. So the order of sums is the position's alone,
// whatever else is in a tile.
//
// Where BY_BLOCKS, tiles have one token, and a workgroup has some turns of its blocks only. Each
// block's sums go to memory, from where paged_attention.add.wgsl adds them in the same order: so a long
// context of one sequence is a whole card's work.
//
// Where TURNS, tiles have one token, whose heads are normed and turned here, and whose key and value go
// to their page first: what rotary.wgsl does otherwise, with the same sums.

struct Params {
    query: u32,
    query_stride: u32,
    output: u32,
    output_stride: u32,
    heads: u32,
    heads_kv: u32,
    scale: f32,
    // 0 where there is none.
    soft_cap: f32,
    // How many positions are seen; 0: all before.
    window: u32,
    // All of a text is seen.
    whole: u32,
    sinks: u32,
    // Where the list of tiles is in `step`: a tile's first token, and how many it has.
    tiles: u32,
    // Heads of a tile, and how many tiles of heads share keys.
    heads_tile: u32,
    across: u32,
    // Where BY_BLOCKS: where blocks' sums are in `work`, of how many blocks of a tile there is room,
    // and the turns of a workgroup.
    partials: u32,
    blocks: u32,
    turns_each: u32,
    // Where heads are turned here, as rotary.wgsl has it.
    key: u32,
    key_stride: u32,
    value: u32,
    value_stride: u32,
    query_norm: u32,
    key_norm: u32,
    epsilon: f32,
    turns: u32,
    turn_pairs: u32,
    half_split: u32,
    growth: f32,
    growth_every: u32,
}
var<immediate> p: Params;

const PARTS = 8u;
const QUERIES = 16u;
const LOWEST = -3.4028235e38;
// Sixteen bytes of a key that a lane has, and of a value.
const QUARTERS = DIM / 32u;
const HALVES = DIM / 64u;
// Columns of outputs that parts add at once, and how far queries are apart: neighbors fall into
// different banks.
const COLUMNS = 32u;
const STRIDE = COLUMNS + 2u;

var<workgroup> sums: array<f32, PARTS * QUERIES * STRIDE>;
var<workgroup> shared_squares: array<f32, 256>;
var<workgroup> highs: array<f32, PARTS * QUERIES>;
var<workgroup> fades: array<f32, PARTS * QUERIES>;
var<workgroup> totals: array<f32, PARTS * QUERIES>;

// A query of the tile.
struct Query {
    // Of the first in this tile where it has fewer.
    token: u32,
    head: u32,
    is_there: bool,
    first: u32,
    last: u32,
}

fn query_of(row: u32, tile: u32, group: u32) -> Query {
    let sharing = p.heads / p.heads_kv;
    let beside = group % p.across * p.heads_tile + row % p.heads_tile;
    let is_there = row / p.heads_tile < step[tile + 1u] && beside < sharing;
    let token = step[tile] + select(0u, row / p.heads_tile, is_there);
    let head = group / p.across * sharing + select(group % p.across * p.heads_tile, beside, is_there);
    let position = of_token(token, TOKEN_POSITION);
    let last = select(position, of_token(token, TOKEN_LAST), p.whole == 1u);
    let first = select(0u, position + 1u - min(p.window, position + 1u), p.window > 0u);
    return Query(token, head, is_there, first, last);
}

fn scored(sums: vec4<f32>) -> vec4<f32> {
    let all = sums * p.scale;
    if p.soft_cap > 0.0 {
        return vec4<f32>(capped(all.x, p.soft_cap), capped(all.y, p.soft_cap),
            capped(all.z, p.soft_cap), capped(all.w, p.soft_cap));
    }
    return all;
}

fn seen_by(query: Query, positions: vec4<u32>) -> vec4<bool> {
    return (positions >= vec4<u32>(query.first)) & (positions <= vec4<u32>(query.last));
}

fn highest_of(a: vec4<f32>, b: vec4<f32>) -> f32 {
    let both = max(a, b);
    return max(max(both.x, both.y), max(both.z, both.w));
}

fn chances_of(scores: vec4<f32>, highest: f32, is_seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(0.0), exp(scores - vec4<f32>(highest)), is_seen);
}

// Of a position and the next, and those eight on.
fn chance_words(upper: vec4<f32>, lower: vec4<f32>) -> vec4<u32> {
    return vec4<u32>(pack2x16float(upper.xy), pack2x16float(upper.zw),
        pack2x16float(lower.xy), pack2x16float(lower.zw));
}

fn sum_of(values: vec4<f32>) -> f32 {
    return (values.x + values.y) + (values.z + values.w);
}

// Words of two positions become those of two columns: first of all even, then of all odd.
fn evens(a: u32, b: u32) -> u32 {
    return (a & 0xffffu) | (b << 16u);
}

fn odds(a: u32, b: u32) -> u32 {
    return (a >> 16u) | (b & 0xffff0000u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    begin_lane(local);
    let part = local / 32u;
    let g = local % 32u / 4u;
    let t = local % 4u;
    let tile = p.tiles + 2u * group.y;
    let upper = query_of(g, tile, group.x);
    let lower = query_of(g + 8u, tile, group.x);
    let head_kv = group.x / p.across;
    // Of the whole tile: its tokens are in their order.
    let table = of_token(step[tile], TOKEN_BLOCKS);
    let first = query_of(0u, tile, group.x).first;
    let final_token = step[tile] + step[tile + 1u] - 1u;
    let last = select(of_token(final_token, TOKEN_POSITION), of_token(final_token, TOKEN_LAST),
        p.whole == 1u);

    let begin = first / (PARTS * BLOCK_TOKENS) * PARTS;
    let turns = (last / BLOCK_TOKENS - begin) / PARTS + 1u;
    let begin_turn = select(0u, group.z * p.turns_each, BY_BLOCKS);
    let end_turn = select(turns, min(turns, begin_turn + p.turns_each), BY_BLOCKS);

    if TURNS {
        // Who has the last position's turn writes its key and value: nobody else reads them.
        turn_heads(step[tile], group.x, local, begin_turn < end_turn && end_turn == turns);
    }
    var queries: array<Rows, 2u * QUARTERS>;
    let from_upper = place_of_query(upper, group.x) + 8u * t;
    let from_lower = place_of_query(lower, group.x) + 8u * t;
    for (var i = 0u; i < 2u * QUARTERS; i++) {
        let at = i / 2u * 32u + i % 2u * 4u;
        queries[i] = rows_in(vec4<u32>(two_columns(from_upper + at), two_columns(from_upper + at + 2u),
            two_columns(from_lower + at), two_columns(from_lower + at + 2u)));
    }
    // Of the upper query, then of the lower.
    var highest = vec2<f32>(LOWEST);
    var total = vec2<f32>(0.0);
    if p.sinks != NONE && part == 0u {
        highest = vec2<f32>(vectors[p.sinks + upper.head], vectors[p.sinks + lower.head]);
        total = vec2<f32>(select(0.0, 1.0, t == 0u));
    }
    var outputs: array<Results, 4u * HALVES>;
    let own = vec4<u32>(2u * t, 2u * t + 1u, 2u * t + 8u, 2u * t + 9u);
    for (var turn = begin_turn; turn < end_turn; turn++) {
        let block = begin + turn * PARTS + part;
        // What nobody sees may be anything: of that, what somebody sees is read instead.
        let here = clamp(block, first / BLOCK_TOKENS, last / BLOCK_TOKENS);
        let page = page_of(step[table + here], p.heads_kv, head_kv);
        let low = max(first, here * BLOCK_TOKENS) - here * BLOCK_TOKENS;
        let high = min(last - here * BLOCK_TOKENS, BLOCK_TOKENS - 1u);

        // All asked for before one is waited for; so it is with values, while chances are worked out.
        var keys: array<vec4<u32>, 4u * QUARTERS>;
        for (var i = 0u; i < 4u * QUARTERS; i++) {
            keys[i] = pages4[page / 4u + (i / 4u * 4u + t) * BLOCK_TOKENS + i % 4u * 8u + g];
        }
        var scores: array<Results, 2>;
        for (var i = 0u; i < 2u; i++) {
            for (var j = 0u; j < QUARTERS; j++) {
                let a = keys[4u * j + 2u * i];
                let b = keys[4u * j + 2u * i + 1u];
                scores[i] = product(queries[2u * j], columns_in(vec4<u32>(a.xy, b.xy)), scores[i]);
                scores[i] = product(queries[2u * j + 1u], columns_in(vec4<u32>(a.zw, b.zw)), scores[i]);
            }
        }
        var values: array<vec4<u32>, 8u * HALVES>;
        for (var i = 0u; i < 8u; i++) {
            let row = clamp(16u * (i / 4u) + own[i % 4u], low, high);
            for (var j = 0u; j < HALVES; j++) {
                let from_row = page / 4u + (BLOCK_TOKENS + row) * (PAIRS / 4u);
                values[HALVES * i + j] = pages4[from_row + 8u * j + g];
            }
        }

        let near = vec4<u32>(block * BLOCK_TOKENS) + own;
        let far = near + vec4<u32>(16u);
        let is_near_upper = seen_by(upper, near);
        let is_far_upper = seen_by(upper, far);
        let is_near_lower = seen_by(lower, near);
        let is_far_lower = seen_by(lower, far);
        let lowest = vec4<f32>(LOWEST);
        let near_upper = select(lowest, scored(upper_of(scores[0])), is_near_upper);
        let far_upper = select(lowest, scored(upper_of(scores[1])), is_far_upper);
        let near_lower = select(lowest, scored(lower_of(scores[0])), is_near_lower);
        let far_lower = select(lowest, scored(lower_of(scores[1])), is_far_lower);
        var most = vec2<f32>(highest_of(near_upper, far_upper), highest_of(near_lower, far_lower));
        most = max(most, beside(most, 1u));
        most = max(most, beside(most, 2u));
        let chance_near_upper = chances_of(near_upper, most.x, is_near_upper);
        let chance_far_upper = chances_of(far_upper, most.x, is_far_upper);
        let chance_near_lower = chances_of(near_lower, most.y, is_near_lower);
        let chance_far_lower = chances_of(far_lower, most.y, is_far_lower);
        let own_total = vec2<f32>(sum_of(chance_near_upper) + sum_of(chance_far_upper),
            sum_of(chance_near_lower) + sum_of(chance_far_lower));
        var chances: array<Rows, 2>;
        chances[0] = rows_in(chance_words(chance_near_upper, chance_near_lower));
        chances[1] = rows_in(chance_words(chance_far_upper, chance_far_lower));

        // What all before and this block are multiplied by to be of the same highest score.
        let higher = max(highest, most);
        let fade = exp(highest - higher);
        let own_fade = exp(most - higher);
        let upper_at = place_of_block(group, block - begin, g);
        let lower_at = place_of_block(group, block - begin, g + 8u);
        if BY_BLOCKS {
            keep_totals(upper, upper_at, t, most.x, own_total.x);
            keep_totals(lower, lower_at, t, most.y, own_total.y);
        } else {
            total = fma(total, fade, own_total * own_fade);
            highest = higher;
        }
        for (var j = 0u; j < HALVES; j++) {
            for (var k = 0u; k < 4u; k++) {
                var result: Results;
                for (var i = 0u; i < 2u; i++) {
                    let a = values[HALVES * (4u * i) + j][k];
                    let b = values[HALVES * (4u * i + 1u) + j][k];
                    let c = values[HALVES * (4u * i + 2u) + j][k];
                    let d = values[HALVES * (4u * i + 3u) + j][k];
                    let columns = vec4<u32>(evens(a, b), evens(c, d), odds(a, b), odds(c, d));
                    result = product(chances[i], columns_in(columns), result);
                }
                let output = 4u * j + k;
                if BY_BLOCKS {
                    keep_sums(upper, upper_at + 16u * output + 4u * t, upper_of(result));
                    keep_sums(lower, lower_at + 16u * output + 4u * t, lower_of(result));
                } else {
                    let before = outputs[output];
                    outputs[output] = results_of(
                        fma(upper_of(before), vec4<f32>(fade.x), upper_of(result) * own_fade.x),
                        fma(lower_of(before), vec4<f32>(fade.y), lower_of(result) * own_fade.y));
                }
            }
        }
    }
    if BY_BLOCKS {
        return;
    }
    total += beside(total, 1u);
    total += beside(total, 2u);
    if t == 0u {
        highs[part * QUERIES + g] = highest.x;
        highs[part * QUERIES + g + 8u] = highest.y;
        totals[part * QUERIES + g] = total.x;
        totals[part * QUERIES + g + 8u] = total.y;
    }
    workgroupBarrier();
    find_fades(local);
    let given_upper = query_of(part, tile, group.x);
    let given_lower = query_of(part + 8u, tile, group.x);
    for (var i = 0u; i < 2u * HALVES; i++) {
        workgroupBarrier();
        keep(upper_of(outputs[2u * i]), upper_of(outputs[2u * i + 1u]), part * QUERIES + g, t);
        keep(lower_of(outputs[2u * i]), lower_of(outputs[2u * i + 1u]), part * QUERIES + g + 8u, t);
        workgroupBarrier();
        give(given_upper, part, i, local % 32u);
        give(given_lower, part + 8u, i, local % 32u);
    }
}

// Of a query, where BY_BLOCKS: its outputs as lanes have them, then what each of four lanes counts,
// then its highest score.
const KEPT = DIM + 8u;

fn place_of_block(group: vec3<u32>, block: u32, row: u32) -> u32 {
    let tile = group.y * p.heads_kv * p.across + group.x;
    return p.partials + ((tile * p.blocks + block) * p.heads_tile + row) * KEPT;
}

// Nothing multiplies these: they are not rounded for matrix units.
fn keep_totals(query: Query, at: u32, t: u32, highest: f32, total: f32) {
    if query.is_there {
        work[at + DIM + t] = total;
        if t == 0u {
            work[at + DIM + 4u] = highest;
        }
    }
}

fn keep_sums(query: Query, at: u32, values: vec4<f32>) {
    if query.is_there {
        work4[at / 4u] = values;
    }
}

fn first_head(group: u32) -> u32 {
    return group / p.across * (p.heads / p.heads_kv) + group % p.across * p.heads_tile;
}

// In `sums` where heads are turned here.
fn place_of_query(query: Query, group: u32) -> u32 {
    if TURNS {
        return (query.head - first_head(group)) * DIM;
    }
    return p.query + query.token * p.query_stride + query.head * DIM;
}

fn two_columns(at: u32) -> u32 {
    if TURNS {
        return pack2x16float(vec2<f32>(sums[at], sums[at + 1u]));
    }
    return query_word(at);
}

// The tile's queries, then its key and value, into `sums`; and the latter two into their page, if it is
// ours to write.
fn turn_heads(token: u32, group: u32, local: u32, is_written: bool) {
    let head_kv = group / p.across;
    let queries = min(p.heads_tile, p.heads / p.heads_kv - group % p.across * p.heads_tile);
    for (var i = local; i < (queries + 2u) * DIM; i += 256u) {
        var source = p.query + token * p.query_stride + first_head(group) * DIM + i;
        if i >= (queries + 1u) * DIM {
            source = p.value + token * p.value_stride + head_kv * DIM + i % DIM;
        } else if i >= queries * DIM {
            source = p.key + token * p.key_stride + head_kv * DIM + i % DIM;
        }
        sums[i] = work[source];
    }
    workgroupBarrier();
    if p.query_norm != NONE || p.key_norm != NONE {
        norm_heads(queries, local);
    }
    for (var i = local; i < (queries + 1u) * p.turn_pairs; i += 256u) {
        let pair = i % p.turn_pairs;
        let head = i / p.turn_pairs * DIM;
        let turn = turn_of(token, pair);
        let turned = turned_by(turn, sums[head + turn.a], sums[head + turn.b]);
        sums[head + turn.a] = turned.x;
        sums[head + turn.b] = turned.y;
    }
    workgroupBarrier();
    let position = of_token(token, TOKEN_POSITION);
    let grown = 1.0 + p.growth * log(1.0 + f32(position / p.growth_every));
    for (var i = local; i < queries * DIM; i += 256u) {
        sums[i] *= grown;
    }
    let block = step[of_token(token, TOKEN_BLOCKS) + position / BLOCK_TOKENS];
    let page = page_of(block, p.heads_kv, head_kv);
    let row = position % BLOCK_TOKENS;
    for (var i = local; is_written && i < 2u * PAIRS; i += 256u) {
        let pair = i % PAIRS;
        let to = select(value_word(page, row, pair), key_word(page, row, pair), i < PAIRS);
        let at = queries * DIM + 2u * i;
        pages4[to / 4u][to % 4u] = pack2x16float(vec2<f32>(sums[at], sums[at + 1u]));
    }
    storageBarrier();
    workgroupBarrier();
}

// By 64 invocations a head: the order of sums of `sum_of_all`.
fn norm_heads(queries: u32, local: u32) {
    let lane = local % 64u;
    for (var first = 0u; first <= queries; first += 4u) {
        let head = first + local / 64u;
        let norm = select(p.key_norm, p.query_norm, head < queries);
        let is_normed = head <= queries && norm != NONE;
        var squares = 0.0;
        for (var i = lane; i < DIM; i += 64u) {
            let value = sums[min(head, queries) * DIM + i];
            squares = fma(value, value, squares);
        }
        shared_squares[local] = squares;
        workgroupBarrier();
        for (var half = 32u; half > 0u; half /= 2u) {
            if lane < half {
                shared_squares[local] += shared_squares[local + half];
            }
            workgroupBarrier();
        }
        let mean = shared_squares[local / 64u * 64u] / f32(DIM);
        let inverse = 1.0 / sqrt(mean + p.epsilon);
        if is_normed {
            for (var i = lane; i < DIM; i += 64u) {
                sums[head * DIM + i] = sums[head * DIM + i] * inverse * vectors[norm + i];
            }
        }
        workgroupBarrier();
    }
}

// Columns 16 t to 16 t + 3 and those eight on, or those four on in odd rounds.
fn keep(first: vec4<f32>, second: vec4<f32>, query: u32, t: u32) {
    let to = query * STRIDE + 8u * t;
    sums[to] = first.x;
    sums[to + 1u] = first.z;
    sums[to + 2u] = second.x;
    sums[to + 3u] = second.z;
    sums[to + 4u] = first.y;
    sums[to + 5u] = first.w;
    sums[to + 6u] = second.y;
    sums[to + 7u] = second.w;
}

// What parts' sums are multiplied by to be of the same highest score.
fn find_fades(local: u32) {
    if local < PARTS * QUERIES {
        var highest = LOWEST;
        for (var part = 0u; part < PARTS; part++) {
            highest = max(highest, highs[part * QUERIES + local % QUERIES]);
        }
        fades[local] = exp(highs[local] - highest);
    }
}

// A column of a query's outputs, of those that `keep` has.
fn give(query: Query, row: u32, round: u32, own: u32) {
    if !query.is_there {
        return;
    }
    var all = 0.0;
    var sum = 0.0;
    for (var part = 0u; part < PARTS; part++) {
        let at = part * QUERIES + row;
        all = fma(fades[at], totals[at], all);
        sum = fma(fades[at], sums[at * STRIDE + own], sum);
    }
    let column = 64u * (round / 2u) + own / 4u * 8u + 4u * (round % 2u) + own % 4u;
    put(p.output + query.token * p.output_stride + query.head * DIM + column, sum / all);
}
