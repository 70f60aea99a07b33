// What paged_attention.units.wgsl left of each block, added in the order in which that adds where it
// does not leave it: a workgroup a tile's head. A part's lanes have four columns each.
//
// Reads what was left once: an eighth of a long context's keys and values where four heads share them.

struct Params {
    output: u32,
    output_stride: u32,
    heads: u32,
    heads_kv: u32,
    window: u32,
    whole: u32,
    sinks: u32,
    tiles: u32,
    heads_tile: u32,
    across: u32,
    partials: u32,
    blocks: u32,
}
var<immediate> p: Params;

const PARTS = 8u;
const LANES = DIM / 4u;
const KEPT = DIM + 8u;
const LOWEST = -3.4028235e38;
// Blocks that are asked for at once.
const AHEAD = 8u;

var<workgroup> sums: array<vec4<f32>, PARTS * LANES>;
var<workgroup> highs: array<f32, PARTS>;
var<workgroup> totals: array<f32, PARTS>;

@compute @workgroup_size(PARTS * LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let head = group.x;
    let token = step[p.tiles + 2u * group.y];
    let part = local / LANES;
    let lane = local % LANES;
    let position = of_token(token, TOKEN_POSITION);
    let last = select(position, of_token(token, TOKEN_LAST), p.whole == 1u);
    let first = select(0u, position + 1u - min(p.window, position + 1u), p.window > 0u);
    let begin = first / (PARTS * BLOCK_TOKENS) * PARTS;
    let turns = (last / BLOCK_TOKENS - begin) / PARTS + 1u;

    let sharing = p.heads / p.heads_kv;
    let beside = head % sharing;
    let of_heads = head / sharing * p.across + beside / p.heads_tile;
    let tile = group.y * p.heads_kv * p.across + of_heads;
    let own = p.partials + (tile * p.blocks * p.heads_tile + beside % p.heads_tile) * KEPT;

    var highest = LOWEST;
    var total = vec4<f32>(0.0);
    if p.sinks != NONE && part == 0u {
        highest = vectors[p.sinks + head];
        total.x = 1.0;
    }
    var sum = vec4<f32>(0.0);
    for (var turn = 0u; turn < turns; turn += AHEAD) {
        // All asked for before one is waited for; behind the last, the last once more.
        var own_sums: array<vec4<f32>, AHEAD>;
        var own_totals: array<vec4<f32>, AHEAD>;
        var most: array<f32, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            let block = min(turn + i, turns - 1u) * PARTS + part;
            let at = own + block * p.heads_tile * KEPT;
            own_sums[i] = work4[at / 4u + lane];
            own_totals[i] = work4[(at + DIM) / 4u];
            most[i] = work[at + DIM + 4u];
        }
        for (var i = 0u; i < AHEAD; i++) {
            if turn + i < turns {
                let higher = max(highest, most[i]);
                let fade = exp(highest - higher);
                let own_fade = exp(most[i] - higher);
                total = fma(total, vec4<f32>(fade), own_totals[i] * own_fade);
                sum = fma(sum, vec4<f32>(fade), own_sums[i] * own_fade);
                highest = higher;
            }
        }
    }
    sums[local] = sum;
    if lane == 0u {
        highs[part] = highest;
        totals[part] = (total.x + total.y) + (total.z + total.w);
    }
    workgroupBarrier();
    if local < LANES {
        give_all(p.output + token * p.output_stride + head * DIM, lane);
    }
}

// Lane 4 n + t has of the n-th product's columns what paged_attention.units.wgsl's lanes of that t have.
fn give_all(to: u32, lane: u32) {
    var highest = LOWEST;
    for (var part = 0u; part < PARTS; part++) {
        highest = max(highest, highs[part]);
    }
    var all = 0.0;
    var sum = vec4<f32>(0.0);
    for (var part = 0u; part < PARTS; part++) {
        let fade = exp(highs[part] - highest);
        all = fma(fade, totals[part], all);
        sum = fma(vec4<f32>(fade), sums[part * LANES + lane], sum);
    }
    let output = lane / 4u;
    let column = to + 64u * (output / 4u) + 2u * (output % 4u) + 16u * (lane % 4u);
    put(column, sum.x / all);
    put(column + 8u, sum.y / all);
    put(column + 1u, sum.z / all);
    put(column + 9u, sum.w / all);
}
