// A state from one place to another, or zeros: 256 elements a workgroup.

struct Params {
    source: u32,
    to: u32,
    elements: u32,
    is_zero: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let at = group.x * 256u + local;
    if at >= p.elements {
        return;
    }
    if p.is_zero == 1u {
        pages[p.to + at] = 0u;
    } else {
        pages[p.to + at] = pages[p.source + at];
    }
}
