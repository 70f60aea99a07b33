// Rows that are sampled, out of all rows: a workgroup a row and 1,024 columns, in whole units.

struct Params {
    input: u32,
    input_stride: u32,
    output: u32,
    output_stride: u32,
    width: u32,
    // Where the list of rows is in `step`.
    picks: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let source = p.input + step[p.picks + group.x] * p.input_stride;
    let to = p.output + group.x * p.output_stride;
    let column = group.y * 1024u + 4u * local;
    if column < p.width {
        put4((to + column) / 4u, work4[(source + column) / 4u]);
    }
}
