// Some columns of each head to another place: a workgroup a row.

struct Params {
    // Of the first head's first column.
    input: u32,
    input_stride: u32,
    input_head: u32,
    output: u32,
    output_stride: u32,
    output_head: u32,
    heads: u32,
    width: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let source = p.input + group.x * p.input_stride;
    let to = p.output + group.x * p.output_stride;
    for (var i = local; i < p.heads * p.width; i += 64u) {
        let head = i / p.width;
        let column = i % p.width;
        put(to + head * p.output_head + column, work[source + head * p.input_head + column]);
    }
}
