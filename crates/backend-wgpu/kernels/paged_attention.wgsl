// Attention over pages: a workgroup a token and HEADS query heads that share keys, PARTS blocks of 32
// positions at a time.
//
// Reads each key and value that the queries see once. An invocation first has a position (its score),
// then pairs of columns of its part's block (their sums). A part takes every PARTS-th block and has a
// highest score of its own; parts are added in their order at the end, so that the order of sums is
// the position's alone.

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

const THREADS = PARTS * BLOCK_TOKENS;
// Pairs of columns of an invocation.
const EACH = (PAIRS + BLOCK_TOKENS - 1u) / BLOCK_TOKENS;
// Values that are asked for at once.
const AHEAD = 8u;
const LOWEST = -3.4028235e38;

// `Heads` is a number of each of the heads, side by side.
var<workgroup> query: array<Heads, 2u * PAIRS>;
var<workgroup> scores: array<Heads, THREADS>;
var<workgroup> chances: array<Heads, THREADS>;
var<workgroup> highs: array<Heads, PARTS>;
var<workgroup> sums: array<vec2<f32>, PARTS * PAIRS>;

fn scores_of(page: u32, row: u32) -> Heads {
    var even = Heads(0.0);
    var odd = Heads(0.0);
    if FOURS {
        for (var i = 0u; i < PAIRS / 4u; i++) {
            let words = pages4[page / 4u + i * BLOCK_TOKENS + row];
            let a = unpack2x16float(words.x);
            let b = unpack2x16float(words.y);
            let c = unpack2x16float(words.z);
            let d = unpack2x16float(words.w);
            even = fma(query[8u * i], Heads(a.x), even);
            odd = fma(query[8u * i + 1u], Heads(a.y), odd);
            even = fma(query[8u * i + 2u], Heads(b.x), even);
            odd = fma(query[8u * i + 3u], Heads(b.y), odd);
            even = fma(query[8u * i + 4u], Heads(c.x), even);
            odd = fma(query[8u * i + 5u], Heads(c.y), odd);
            even = fma(query[8u * i + 6u], Heads(d.x), even);
            odd = fma(query[8u * i + 7u], Heads(d.y), odd);
        }
    } else {
        for (var i = 0u; i < PAIRS; i++) {
            let key = unpack2x16float(pages[key_word(page, row, i)]);
            even = fma(query[2u * i], Heads(key.x), even);
            odd = fma(query[2u * i + 1u], Heads(key.y), odd);
        }
    }
    let all = (even + odd) * p.scale;
    if p.soft_cap > 0.0 {
        return capped_heads(all, p.soft_cap);
    }
    return all;
}

fn query_of(at: u32, column: u32) -> f32 {
    if column < DIM {
        return work[at + column];
    }
    return 0.0;
}

@compute @workgroup_size(PARTS * 32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.y;
    let head = group.x * HEADS;
    let head_kv = head / (p.heads / p.heads_kv);
    let table = of_token(token, TOKEN_BLOCKS);
    let position = of_token(token, TOKEN_POSITION);
    let last = select(position, of_token(token, TOKEN_LAST), p.whole == 1u);
    let first = select(0u, position + 1u - min(p.window, position + 1u), p.window > 0u);
    for (var i = local; i < 2u * PAIRS; i += THREADS) {
        let at = p.query + token * p.query_stride + head * DIM;
        query[i] = of_heads(query_of(at, i), query_of(at + min(1u, HEADS - 1u) * DIM, i),
            query_of(at + min(2u, HEADS - 1u) * DIM, i), query_of(at + (HEADS - 1u) * DIM, i));
    }
    let part = local / BLOCK_TOKENS;
    let lane = local % BLOCK_TOKENS;
    var highest = Heads(LOWEST);
    var total = Heads(0.0);
    if p.sinks != NONE && part == 0u {
        let at = p.sinks + head;
        highest = of_heads(vectors[at], vectors[at + min(1u, HEADS - 1u)],
            vectors[at + min(2u, HEADS - 1u)], vectors[at + HEADS - 1u]);
        total = Heads(select(0.0, 1.0, local == 0u));
    }
    // Of the even columns, then of the odd.
    var even: array<Heads, EACH>;
    var odd: array<Heads, EACH>;
    for (var start = first / THREADS * THREADS; start <= last; start += THREADS) {
        let block = start / BLOCK_TOKENS + part;
        let is_read = block * BLOCK_TOKENS <= last;
        let page = page_of(step[table + min(block, last / BLOCK_TOKENS)], p.heads_kv, head_kv);
        let is_seen = start + local >= first && start + local <= last;
        workgroupBarrier();
        var score = Heads(LOWEST);
        if is_seen {
            score = scores_of(page, lane);
        }
        scores[local] = score;
        workgroupBarrier();
        var higher = highest;
        for (var i = 0u; i < BLOCK_TOKENS; i++) {
            higher = max(higher, scores[part * BLOCK_TOKENS + i]);
        }
        let fade = exp(highest - higher);
        let chance = select(Heads(0.0), exp(score - higher), is_seen);
        chances[local] = chance;
        total = fma(total, fade, chance);
        highest = higher;
        workgroupBarrier();
        for (var i = 0u; i < EACH; i++) {
            even[i] *= fade;
            odd[i] *= fade;
        }
        if is_read {
            let begin = max(first, block * BLOCK_TOKENS) - block * BLOCK_TOKENS;
            let end = min(last + 1u - block * BLOCK_TOKENS, BLOCK_TOKENS);
            for (var t = 0u; t < BLOCK_TOKENS; t += AHEAD) {
                for (var i = 0u; i < EACH; i++) {
                    let pair = min(lane + i * BLOCK_TOKENS, PAIRS - 1u);
                    // All asked for before one is waited for; what nobody sees may be anything.
                    var words: array<u32, AHEAD>;
                    for (var j = 0u; j < AHEAD; j++) {
                        words[j] = pages[value_word(page, t + j, pair)];
                    }
                    for (var j = 0u; j < AHEAD; j++) {
                        let weight = chances[part * BLOCK_TOKENS + t + j];
                        let is_in = t + j >= begin && t + j < end;
                        let value = unpack2x16float(select(0u, words[j], is_in));
                        even[i] = fma(weight, Heads(value.x), even[i]);
                        odd[i] = fma(weight, Heads(value.y), odd[i]);
                    }
                }
            }
        }
    }
    scores[local] = total;
    if lane == 0u {
        highs[part] = highest;
    }
    for (var h = 0u; h < HEADS; h++) {
        workgroupBarrier();
        for (var i = 0u; i < EACH; i++) {
            if lane + i * BLOCK_TOKENS < PAIRS {
                let sum = vec2<f32>(head_of(even[i], h), head_of(odd[i], h));
                sums[part * PAIRS + lane + i * BLOCK_TOKENS] = sum;
            }
        }
        workgroupBarrier();
        give_all(token, head, h, local);
    }
}

fn give_all(token: u32, head: u32, h: u32, local: u32) {
    var highest = LOWEST;
    for (var part = 0u; part < PARTS; part++) {
        highest = max(highest, head_of(highs[part], h));
    }
    var all = 0.0;
    for (var part = 0u; part < PARTS; part++) {
        var total = 0.0;
        for (var i = 0u; i < BLOCK_TOKENS; i++) {
            total += head_of(scores[part * BLOCK_TOKENS + i], h);
        }
        all = fma(exp(head_of(highs[part], h) - highest), total, all);
    }
    for (var pair = local; pair < PAIRS; pair += THREADS) {
        var sum = vec2<f32>(0.0);
        for (var part = 0u; part < PARTS; part++) {
            let fade = exp(head_of(highs[part], h) - highest);
            sum = fma(vec2<f32>(fade), sums[part * PAIRS + pair], sum);
        }
        let to = p.output + token * p.output_stride + (head + h) * DIM + 2u * pair;
        put(to, sum.x / all);
        if 2u * pair + 1u < DIM {
            put(to + 1u, sum.y / all);
        }
    }
}
