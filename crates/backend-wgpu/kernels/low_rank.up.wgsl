// What an adapter's second matrix adds to a product: a workgroup a token and 256 columns. Tokens of
// other adapters are left alone.

struct Params {
    inner: u32,
    inner_stride: u32,
    rank: u32,
    matrix: u32,
    output: u32,
    output_stride: u32,
    width: u32,
    scale: f32,
    adapter: u32,
    adapters: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    let column = group.y * 256u + local;
    if column >= p.width || step[p.adapters + token] != p.adapter {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < p.rank; i++) {
        let value = work[p.inner + token * p.inner_stride + i];
        sum = fma(value, vectors[p.matrix + column * p.rank + i], sum);
    }
    let at = p.output + token * p.output_stride + column;
    put(at, work[at] + p.scale * sum);
}
