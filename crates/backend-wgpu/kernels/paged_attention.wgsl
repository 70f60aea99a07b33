// Attention over pages: a workgroup a token and query head, 64 positions at a time.
//
// Reads each key and value that the query sees once. An invocation first has a position (its score),
// then a pair of columns (their sums); positions are taken in their order from a multiple of 64 on,
// so that the order of sums is the position's alone.

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
}
var<immediate> p: Params;

const CHUNK = 64u;
const PAIRS = (DIM + 1u) / 2u;
// Invocations side by side over the columns, and how many take turns over positions.
const ACROSS = select(CHUNK, select(32u, select(16u, 8u, PAIRS <= 8u), PAIRS <= 16u), PAIRS <= 32u);
const DOWN = CHUNK / ACROSS;
const EACH = (PAIRS + ACROSS - 1u) / ACROSS;
const LOWEST = -3.4028235e38;

var<workgroup> query: array<vec2<f32>, PAIRS>;
var<workgroup> chances: array<f32, CHUNK>;
var<workgroup> most: array<f32, CHUNK>;
var<workgroup> gathered: array<vec2<f32>, CHUNK>;

fn most_of_all(local: u32, value: f32) -> f32 {
    workgroupBarrier();
    most[local] = value;
    workgroupBarrier();
    for (var half = CHUNK / 2u; half > 0u; half /= 2u) {
        if local < half {
            most[local] = max(most[local], most[local + half]);
        }
        workgroupBarrier();
    }
    return most[0];
}

fn page_row(table: u32, position: u32, head_kv: u32, side: u32) -> u32 {
    let block = step[table + position / BLOCK_TOKENS];
    let head = 2u * (block * p.heads_kv + head_kv) + side;
    return (head * BLOCK_TOKENS + position % BLOCK_TOKENS) * PAIRS;
}

fn score_of(table: u32, position: u32, head_kv: u32) -> f32 {
    let at = page_row(table, position, head_kv, 0u);
    var dot = vec2<f32>(0.0);
    for (var i = 0u; i < PAIRS / 4u; i++) {
        // Rows of a head whose pairs are a multiple of four begin at whole words of four.
        var words: vec4<u32>;
        if PAIRS % 4u == 0u {
            words = pages4[at / 4u + i];
        } else {
            let first = at + 4u * i;
            words = vec4<u32>(pages[first], pages[first + 1u], pages[first + 2u], pages[first + 3u]);
        }
        dot = fma(query[4u * i], unpack2x16float(words.x), dot);
        dot = fma(query[4u * i + 1u], unpack2x16float(words.y), dot);
        dot = fma(query[4u * i + 2u], unpack2x16float(words.z), dot);
        dot = fma(query[4u * i + 3u], unpack2x16float(words.w), dot);
    }
    for (var i = PAIRS / 4u * 4u; i < PAIRS; i++) {
        dot = fma(query[i], unpack2x16float(pages[at + i]), dot);
    }
    let score = (dot.x + dot.y) * p.scale;
    if p.soft_cap > 0.0 {
        return capped(score, p.soft_cap);
    }
    return score;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.y;
    let head = group.x;
    let head_kv = head / (p.heads / p.heads_kv);
    let table = of_token(token, TOKEN_BLOCKS);
    let position = of_token(token, TOKEN_POSITION);
    let last = select(position, of_token(token, TOKEN_LAST), p.whole == 1u);
    let first = select(0u, position + 1u - min(p.window, position + 1u), p.window > 0u);
    for (var i = local; i < PAIRS; i += CHUNK) {
        let at = p.query + token * p.query_stride + head * DIM + 2u * i;
        query[i] = vec2<f32>(work[at], select(0.0, work[at + 1u], 2u * i + 1u < DIM));
    }
    workgroupBarrier();
    var highest = LOWEST;
    var total = 0.0;
    if p.sinks != NONE {
        highest = vectors[p.sinks + head];
        total = select(0.0, 1.0, local == 0u);
    }
    let column = local % ACROSS;
    let turn = local / ACROSS;
    var sums: array<vec2<f32>, EACH>;
    for (var start = first / CHUNK * CHUNK; start <= last; start += CHUNK) {
        let own = start + local;
        let is_seen = own >= first && own <= last;
        var score = LOWEST;
        if is_seen {
            score = score_of(table, own, head_kv);
        }
        let higher = max(highest, most_of_all(local, score));
        let fade = exp(highest - higher);
        let chance = select(0.0, exp(score - higher), is_seen);
        chances[local] = chance;
        total = fma(total, fade, chance);
        highest = higher;
        workgroupBarrier();
        for (var i = 0u; i < EACH; i++) {
            sums[i] *= fade;
        }
        let source = max(first, start) - start;
        let end = min(last + 1u, start + CHUNK) - start;
        // The first of this invocation's turns that is seen.
        for (var t = turn + (source + DOWN - 1u - turn) / DOWN * DOWN; t < end; t += DOWN) {
            let at = page_row(table, start + t, head_kv, 1u);
            for (var i = 0u; i < EACH; i++) {
                let pair = column + i * ACROSS;
                if pair < PAIRS {
                    let value = unpack2x16float(pages[at + pair]);
                    sums[i] = fma(vec2<f32>(chances[t]), value, sums[i]);
                }
            }
        }
    }
    let all = sum_of_all(local, total);
    for (var i = 0u; i < EACH; i++) {
        workgroupBarrier();
        gathered[local] = sums[i];
        workgroupBarrier();
        let pair = column + i * ACROSS;
        if turn == 0u && pair < PAIRS {
            var sum = gathered[local];
            for (var t = 1u; t < DOWN; t++) {
                sum += gathered[t * ACROSS + column];
            }
            let to = p.output + token * p.output_stride + head * DIM + 2u * pair;
            work[to] = sum.x / all;
            if 2u * pair + 1u < DIM {
                work[to + 1u] = sum.y / all;
            }
        }
    }
}
