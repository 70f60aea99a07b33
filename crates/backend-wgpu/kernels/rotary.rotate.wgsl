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
        let at = p.turns + 2u * (token * p.turn_pairs + pair);
        let cosine = bitcast<f32>(step[at]);
        let sine = bitcast<f32>(step[at + 1u]);
        let a = first + select(2u * pair, pair, p.half_split == 1u);
        let b = first + select(2u * pair + 1u, pair + p.turn_pairs, p.half_split == 1u);
        let turned = work[a] * cosine - work[b] * sine;
        put(b, work[b] * cosine + work[a] * sine);
        put(a, turned);
    }
}
