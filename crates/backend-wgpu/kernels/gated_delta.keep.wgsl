// Keeps the inputs of guesses, once all heads have read those of the step before: a workgroup a row of
// the step and one of its guesses.

struct Params {
    mixed: u32,
    mixed_stride: u32,
    mixed_width: u32,
    decay: u32,
    decay_stride: u32,
    strength: u32,
    strength_stride: u32,
    heads: u32,
    guesses: u32,
    slot_guesses: u32,
    guess_stride: u32,
    rows: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = carried_row(p.rows, group.x);
    if group.y >= row.proposed {
        return;
    }
    let token = row.first + row.length - row.proposed + group.y;
    let to = p.guesses + row.slot * p.slot_guesses + group.y * p.guess_stride;
    for (var i = local; i < p.mixed_width + 2u * p.heads; i += 64u) {
        var source = p.mixed + token * p.mixed_stride + i;
        if i >= p.mixed_width + p.heads {
            source = p.strength + token * p.strength_stride + i - p.mixed_width - p.heads;
        } else if i >= p.mixed_width {
            source = p.decay + token * p.decay_stride + i - p.mixed_width;
        }
        pages[to + i] = bitcast<u32>(work[source]);
    }
}
