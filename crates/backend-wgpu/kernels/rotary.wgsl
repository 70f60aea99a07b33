// Heads of queries and keys: normed, turned by their positions; keys and values into their pages.
//
// A workgroup a token and head: first those of queries, then of keys, then of values. pages.wgsli says
// how they lie in a page.

struct Params {
    query: u32,
    query_stride: u32,
    key: u32,
    key_stride: u32,
    value: u32,
    value_stride: u32,
    heads: u32,
    heads_kv: u32,
    query_norm: u32,
    key_norm: u32,
    epsilon: f32,
    // Where the angles' cosines and sines are in `step`: pairs for each token.
    turns: u32,
    turn_pairs: u32,
    half_split: u32,
    // Queries grow by this at each of so many positions; by nothing in most models.
    growth: f32,
    growth_every: u32,
}
var<immediate> p: Params;

var<workgroup> head: array<f32, 2u * PAIRS>;
var<workgroup> turned: array<f32, 2u * PAIRS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.y;
    let is_query = group.x < p.heads;
    let is_key = !is_query && group.x < p.heads + p.heads_kv;
    var source = p.query + token * p.query_stride + group.x * DIM;
    var norm = p.query_norm;
    var head_kv = 0u;
    if is_key {
        head_kv = group.x - p.heads;
        source = p.key + token * p.key_stride + head_kv * DIM;
        norm = p.key_norm;
    } else if !is_query {
        head_kv = group.x - p.heads - p.heads_kv;
        source = p.value + token * p.value_stride + head_kv * DIM;
        norm = NONE;
    }
    var squares = 0.0;
    for (var i = local; i < DIM; i += THREADS) {
        let value = work[source + i];
        head[i] = value;
        squares = fma(value, value, squares);
    }
    if DIM % 2u == 1u && local == 0u {
        turned[2u * PAIRS - 1u] = 0.0;
    }
    if p.query_norm != NONE || p.key_norm != NONE {
        squares = sum_of_all(local, squares);
    }
    if norm != NONE {
        let mean = squares / f32(DIM);
        let inverse = 1.0 / sqrt(mean + p.epsilon);
        for (var i = local; i < DIM; i += THREADS) {
            head[i] = head[i] * inverse * vectors[norm + i];
        }
    }
    workgroupBarrier();
    let turns = select(0u, p.turn_pairs, is_query || is_key);
    for (var i = local; i < DIM; i += THREADS) {
        turned[i] = head[i];
    }
    workgroupBarrier();
    for (var i = local; i < turns; i += THREADS) {
        let turn = turn_of(token, i);
        let pair = turned_by(turn, head[turn.a], head[turn.b]);
        turned[turn.a] = pair.x;
        turned[turn.b] = pair.y;
    }
    workgroupBarrier();
    let position = of_token(token, TOKEN_POSITION);
    if is_query {
        let grown = 1.0 + p.growth * log(1.0 + f32(position / p.growth_every));
        for (var i = local; i < DIM; i += THREADS) {
            put(source + i, grown * turned[i]);
        }
        return;
    }
    let block = step[of_token(token, TOKEN_BLOCKS) + position / BLOCK_TOKENS];
    let page = page_of(block, p.heads_kv, head_kv);
    let row = position % BLOCK_TOKENS;
    for (var i = local; i < PAIRS; i += THREADS) {
        let to = select(value_word(page, row, i), key_word(page, row, i), is_key);
        pages[to] = pack2x16float(vec2<f32>(turned[2u * i], turned[2u * i + 1u]));
    }
}
