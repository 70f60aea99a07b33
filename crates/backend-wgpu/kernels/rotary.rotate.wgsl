// Turns heads by their positions, in place: a workgroup a token, each invocation a pair at a time.

struct Params {
    values: u32,
    stride: u32,
    heads: u32,
    head_dim: u32,
    // Where the angles' cosines and sines are in `step`: pairs for each token.
    turns: u32,
    turn_pairs: u32,
    half_split: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    for (var i = local; i < p.heads * p.turn_pairs; i += 64u) {
        let pair = i % p.turn_pairs;
        let first = p.values + token * p.stride + i / p.turn_pairs * p.head_dim;
        let turn = turn_of(token, pair);
        let turned = turned_by(turn, work[first + turn.a], work[first + turn.b]);
        put(first + turn.a, turned.x);
        put(first + turn.b, turned.y);
    }
}
