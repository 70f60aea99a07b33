// y = (y - mean) / sqrt(variance + epsilon) * weight + bias, in place: a workgroup a row, which it
// reads three times.

struct Params {
    values: u32,
    stride: u32,
    width: u32,
    weight: u32,
    bias: u32,
    epsilon: f32,
}
var<immediate> p: Params;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = p.values + group.x * p.stride;
    var sum = 0.0;
    for (var i = local; i < p.width; i += THREADS) {
        sum += work[first + i];
    }
    let mean = sum_of_all(local, sum) / f32(p.width);
    var squares = 0.0;
    for (var i = local; i < p.width; i += THREADS) {
        let off = work[first + i] - mean;
        squares = fma(off, off, squares);
    }
    let inverse = 1.0 / sqrt(sum_of_all(local, squares) / f32(p.width) + p.epsilon);
    for (var i = local; i < p.width; i += THREADS) {
        let normed = (work[first + i] - mean) * inverse;
        put(first + i, normed * vectors[p.weight + i] + vectors[p.bias + i]);
    }
}
