// What a token's experts gave, weighed and summed in the order of the choice, stored or added: a
// workgroup a token and 1,024 columns.

struct Params {
    input: u32,
    input_stride: u32,
    choices: u32,
    choices_stride: u32,
    used: u32,
    output: u32,
    output_stride: u32,
    width: u32,
    adds: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    let choices = p.choices + token * p.choices_stride;
    for (var i = 0u; i < 4u; i++) {
        let column = group.y * 1024u + i * 256u + local;
        if column >= p.width {
            return;
        }
        var total = 0.0;
        for (var k = 0u; k < p.used; k++) {
            let given = work[p.input + (token * p.used + k) * p.input_stride + column];
            total = fma(work[choices + 2u * k + 1u], given, total);
        }
        let at = p.output + token * p.output_stride + column;
        put(at, select(total, work[at] + total, p.adds == 1u));
    }
}
