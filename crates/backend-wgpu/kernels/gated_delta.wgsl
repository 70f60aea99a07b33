// Every token lets its head's matrix fade, corrects it and reads it: ops::gated_delta. A workgroup a
// row of the step, head and COLUMNS columns, token after token, so that it does not matter how a
// prompt is cut.
//
// The columns are kept in workgroup memory: the matrix is read and written once a step. PARTS lanes
// share a column, each with EACH keys; what they sum is added in their order.

struct Params {
    mixed: u32,
    mixed_stride: u32,
    decay: u32,
    decay_stride: u32,
    strength: u32,
    strength_stride: u32,
    rate: u32,
    bias: u32,
    output: u32,
    output_stride: u32,
    heads: u32,
    heads_key: u32,
    value_dim: u32,
    is_grouped: u32,
    // Where this op's guesses begin in `pages`, and how far the slots' states and guesses are apart.
    guesses: u32,
    state_stride: u32,
    slot_guesses: u32,
    guess_stride: u32,
    // Where the step's rows are in `step`.
    rows: u32,
}
var<immediate> p: Params;

const THREADS = 128u;
const PARTS = THREADS / COLUMNS;
const EACH = (KEYS + PARTS - 1u) / PARTS;

var<workgroup> matrix: array<f32, KEYS * COLUMNS>;
var<workgroup> query: array<f32, KEYS>;
var<workgroup> key: array<f32, KEYS>;
var<workgroup> partial: array<f32, THREADS>;

fn mixed_width() -> u32 {
    return 2u * p.heads_key * KEYS + p.heads * p.value_dim;
}

// Of a token of the step, or of a guess of the step before.
struct Token {
    is_kept: bool,
    index: u32,
    kept: u32,
}

fn mixed_at(token: Token, column: u32) -> f32 {
    if token.is_kept {
        return bitcast<f32>(pages[token.kept + column]);
    }
    return work[p.mixed + token.index * p.mixed_stride + column];
}

fn decay_of(token: Token, head: u32) -> f32 {
    if token.is_kept {
        return bitcast<f32>(pages[token.kept + mixed_width() + head]);
    }
    return work[p.decay + token.index * p.decay_stride + head];
}

fn strength_of(token: Token, head: u32) -> f32 {
    if token.is_kept {
        return bitcast<f32>(pages[token.kept + mixed_width() + p.heads + head]);
    }
    return work[p.strength + token.index * p.strength_stride + head];
}

fn sum_of_parts(local: u32, value: f32) -> f32 {
    workgroupBarrier();
    partial[local] = value;
    workgroupBarrier();
    var total = 0.0;
    for (var part = 0u; part < PARTS; part++) {
        total += partial[part * COLUMNS + local % COLUMNS];
    }
    return total;
}

fn length_of(local: u32, is_query: bool) -> f32 {
    var squares = 0.0;
    for (var i = local; i < KEYS; i += THREADS) {
        let value = select(key[i], query[i], is_query);
        squares = fma(value, value, squares);
    }
    workgroupBarrier();
    partial[local] = squares;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < min(THREADS, KEYS); i++) {
        total += partial[i];
    }
    return sqrt(total + 1e-6);
}

// ln(1 + e^x): where e^x is small, its own series.
fn softplus(x: f32) -> f32 {
    let power = exp(min(x, 20.0));
    let small = power * (1.0 - power * (0.5 - power * 0.33333334));
    return select(select(log(1.0 + power), small, power < 0.01), x, x > 20.0);
}

fn leave(first: u32, column: u32, local: u32) {
    let own = local % COLUMNS;
    if column >= p.value_dim {
        return;
    }
    for (var i = local / COLUMNS * EACH; i < min((local / COLUMNS + 1u) * EACH, KEYS); i++) {
        pages[first + i * p.value_dim + column] = bitcast<u32>(matrix[i * COLUMNS + own]);
    }
}

// One token: what its head reads of this invocation's column.
fn take(token: Token, head: u32, column: u32, local: u32) -> f32 {
    let key_head = select(head % p.heads_key, head / (p.heads / p.heads_key), p.is_grouped == 1u);
    workgroupBarrier();
    for (var i = local; i < KEYS; i += THREADS) {
        query[i] = mixed_at(token, key_head * KEYS + i);
        key[i] = mixed_at(token, (p.heads_key + key_head) * KEYS + i);
    }
    let of_query = length_of(local, true) * sqrt(f32(KEYS));
    let of_key = length_of(local, false);
    var value = 0.0;
    if column < p.value_dim {
        value = mixed_at(token, 2u * p.heads_key * KEYS + head * p.value_dim + column);
    }
    let fade = exp(vectors[p.rate + head] * softplus(decay_of(token, head) + vectors[p.bias + head]));
    let correct = 1.0 / (1.0 + exp(-strength_of(token, head)));
    let own = local % COLUMNS;
    let begin = local / COLUMNS * EACH;
    let end = min(begin + EACH, KEYS);
    var known = 0.0;
    for (var i = begin; i < end; i++) {
        let faded = matrix[i * COLUMNS + own] * fade;
        matrix[i * COLUMNS + own] = faded;
        known = fma(faded, key[i] / of_key, known);
    }
    let missing = correct * (value - sum_of_parts(local, known));
    var read = 0.0;
    for (var i = begin; i < end; i++) {
        let corrected = fma(key[i] / of_key, missing, matrix[i * COLUMNS + own]);
        matrix[i * COLUMNS + own] = corrected;
        read = fma(corrected, query[i] / of_query, read);
    }
    return sum_of_parts(local, read);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = carried_row(p.rows, group.x);
    let head = group.y;
    let column = group.z * COLUMNS + local % COLUMNS;
    let first = row.slot * p.state_stride + head * KEYS * p.value_dim;
    let kept = p.guesses + row.slot * p.slot_guesses;
    for (var i = local / COLUMNS * EACH; i < min((local / COLUMNS + 1u) * EACH, KEYS); i++) {
        let own = first + i * p.value_dim + min(column, p.value_dim - 1u);
        matrix[i * COLUMNS + local % COLUMNS] = bitcast<f32>(pages[own]);
    }
    let certain = row.right + row.length - row.proposed;
    for (var at = 0u; at < row.right + row.length; at++) {
        if at == certain {
            leave(first, column, local);
        }
        let index = row.first + max(at, row.right) - row.right;
        let read = take(Token(at < row.right, index, kept + at * p.guess_stride), head, column, local);
        // What a guess of the step before said is in the cache of the layers behind.
        if at >= row.right && local < COLUMNS && column < p.value_dim {
            put(p.output + index * p.output_stride + head * p.value_dim + column, read);
        }
    }
    if row.proposed == 0u {
        leave(first, column, local);
    }
}
