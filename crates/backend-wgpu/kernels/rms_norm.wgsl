// y = x / rms(x) * weight, stored or added, or times SiLU of a gate: a workgroup a row, or a head of
// one.
//
// An invocation has EACH columns of 4,096 at a time and reads all of them before it writes one: a load
// behind a store waits for it. Rows of more are read twice.

struct Params {
    input: u32,
    input_stride: u32,
    output: u32,
    output_stride: u32,
    // Of a head, where rows have several.
    width: u32,
    weight: u32,
    epsilon: f32,
    adds: u32,
    gate: u32,
    gate_stride: u32,
}
var<immediate> p: Params;

const EACH = 16u;

fn take(begin: u32, source: u32) -> array<f32, EACH> {
    var values: array<f32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        if begin + i * THREADS < p.width {
            values[i] = work[source + begin + i * THREADS];
        }
    }
    return values;
}

fn weights_of(begin: u32) -> array<f32, EACH> {
    var values: array<f32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        if begin + i * THREADS < p.width {
            values[i] = vectors[p.weight + begin + i * THREADS];
        }
    }
    return values;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let source = p.input + group.x * p.input_stride + group.y * p.width;
    let to = p.output + group.x * p.output_stride + group.y * p.width;
    let gates = p.gate + group.x * p.gate_stride + group.y * p.width;
    var values: array<f32, EACH>;
    var squares = 0.0;
    for (var begin = 0u; begin < p.width; begin += EACH * THREADS) {
        values = take(begin + local, source);
        for (var i = 0u; i < EACH; i++) {
            squares = fma(values[i], values[i], squares);
        }
    }
    // Asked for before the sum is waited for.
    var factors: array<f32, EACH>;
    if p.weight != NONE {
        factors = weights_of(local);
    }
    let mean = sum_of_all(local, squares) / f32(p.width);
    let inverse = 1.0 / sqrt(mean + p.epsilon);
    let is_kept = p.width <= EACH * THREADS;
    for (var begin = 0u; begin < p.width; begin += EACH * THREADS) {
        if !is_kept {
            values = take(begin + local, source);
        }
        for (var i = 0u; i < EACH; i++) {
            values[i] *= inverse;
        }
        if p.weight != NONE {
            if !is_kept {
                factors = weights_of(begin + local);
            }
            for (var i = 0u; i < EACH; i++) {
                values[i] *= factors[i];
            }
        }
        if p.gate != NONE {
            let gated = take(begin + local, gates);
            for (var i = 0u; i < EACH; i++) {
                values[i] *= gated[i] / (1.0 + exp(-gated[i]));
            }
        }
        if p.adds == 1u {
            let before = take(begin + local, to);
            for (var i = 0u; i < EACH; i++) {
                values[i] += before[i];
            }
        }
        for (var i = 0u; i < EACH; i++) {
            if begin + local + i * THREADS < p.width {
                put(to + begin + local + i * THREADS, values[i]);
            }
        }
    }
}
