// What an adapter's first matrix makes of a token: a workgroup a token and row of the matrix. Tokens
// of other adapters are left alone.

struct Params {
    input: u32,
    input_stride: u32,
    width: u32,
    matrix: u32,
    output: u32,
    output_stride: u32,
    adapter: u32,
    // Where each token's adapter is in `step`.
    adapters: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    if step[p.adapters + token] != p.adapter {
        return;
    }
    let source = p.input + token * p.input_stride;
    var sum = 0.0;
    for (var i = local; i < p.width; i += THREADS) {
        sum = fma(work[source + i], vectors[p.matrix + group.y * p.width + i], sum);
    }
    let total = sum_of_all(local, sum);
    if local == 0u {
        put(p.output + token * p.output_stride + group.y, total);
    }
}
