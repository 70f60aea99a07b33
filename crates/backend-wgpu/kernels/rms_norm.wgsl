// y = x / rms(x) * weight, stored or added, or times SiLU of a gate: a workgroup a row, or a head of
// one, which it reads twice.

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

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let source = p.input + group.x * p.input_stride + group.y * p.width;
    let to = p.output + group.x * p.output_stride + group.y * p.width;
    let gates = p.gate + group.x * p.gate_stride + group.y * p.width;
    var squares = 0.0;
    for (var i = local; i < p.width; i += THREADS) {
        squares = fma(work[source + i], work[source + i], squares);
    }
    let mean = sum_of_all(local, squares) / f32(p.width);
    let inverse = 1.0 / sqrt(mean + p.epsilon);
    for (var i = local; i < p.width; i += THREADS) {
        var value = work[source + i] * inverse;
        if p.weight != NONE {
            value *= vectors[p.weight + i];
        }
        if p.gate != NONE {
            value *= work[gates + i] / (1.0 + exp(-work[gates + i]));
        }
        if p.adds == 1u {
            value += work[to + i];
        }
        work[to + i] = value;
    }
}
