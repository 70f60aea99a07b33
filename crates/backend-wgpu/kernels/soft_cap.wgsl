// values = cap * tanh(values / cap), in place: a workgroup a row and 1,024 columns.

struct Params {
    values: u32,
    stride: u32,
    width: u32,
    cap: f32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    for (var i = 0u; i < 4u; i++) {
        let column = group.y * 1024u + i * 256u + local;
        if column < p.width {
            let at = p.values + group.x * p.stride + column;
            work[at] = capped(work[at], p.cap);
        }
    }
}
