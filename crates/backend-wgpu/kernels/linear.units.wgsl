// Products of up to 16 tokens by matrix units: 32 rows a workgroup, a slice of the columns each 32
// lanes.
//
// Reads each weight once. A lane decodes a unit of a row at a time into its slice's tile, first of the
// upper 16 rows and then of the lower, and has asked for the next before; so it is with inputs, of
// TOKENS tokens. Written out for both tiles: in a loop over them, the driver's compiler keeps them in
// memory.

const TILES = WARPS;
const TILE4 = 16u * ROW4;
// Two tokens at a time are brought by 32 lanes.
const LOADS = (TOKENS + 1u) / 2u;

// The last slice's matrix of inputs reaches beyond its tokens: what is there is not used.
var<workgroup> tile_x: array<vec4<f16>, (WARPS * TOKENS + 16u) * ROW4>;

fn inputs_at(chunk: u32, token: u32, lane: u32) -> array<vec4<f16>, LOADS> {
    var values: array<vec4<f16>, LOADS>;
    let column = min(chunk * 16u + lane % 16u, p.matrix.units * 8u - 1u);
    for (var i = 0u; i < LOADS; i++) {
        let t = min(token + 2u * i + lane / 16u, p.tokens - 1u);
        values[i] = rounded4[(p.input + t * p.input_stride) / 4u + column];
    }
    return values;
}

fn add_chunk(
    sum: coop_mat16x16<f32, C>,
    tile: u32,
    x0: coop_mat16x16<f16, B>,
    x1: coop_mat16x16<f16, B>,
    x2: coop_mat16x16<f16, B>,
    x3: coop_mat16x16<f16, B>,
) -> coop_mat16x16<f32, C> {
    let a = coopLoadT<coop_mat16x16<f16, A>>(&tiles[tile], ROW4);
    let b = coopLoadT<coop_mat16x16<f16, A>>(&tiles[tile + 4u], ROW4);
    let c = coopLoadT<coop_mat16x16<f16, A>>(&tiles[tile + 8u], ROW4);
    let d = coopLoadT<coop_mat16x16<f16, A>>(&tiles[tile + 12u], ROW4);
    let first = coopMultiplyAdd(b, x1, coopMultiplyAdd(a, x0, sum));
    return coopMultiplyAdd(d, x3, coopMultiplyAdd(c, x2, first));
}

@compute @workgroup_size(WARPS * 32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let slice = local / 32u;
    let lane = local % 32u;
    let row = group.x * 32u + lane % 16u;
    let token = group.y * 16u;
    let chunks = (p.matrix.units + CHUNK_UNITS - 1u) / CHUNK_UNITS;
    let each = (chunks + SLICES - 1u) / SLICES;
    let tile = slice * TILE4;
    let to = tile + lane % 16u * ROW4 + lane / 16u * 8u;
    let own_x = slice * TOKENS * ROW4;
    // One token stands for all sixteen.
    let stride = select(ROW4, 0u, TOKENS == 1u);
    var upper = unit_of(row, slice * each * CHUNK_UNITS + lane / 16u);
    var lower = unit_of(row + 16u, slice * each * CHUNK_UNITS + lane / 16u);
    var inputs = inputs_at(slice * each, token, lane);
    var upper_sum: coop_mat16x16<f32, C>;
    var lower_sum: coop_mat16x16<f32, C>;
    for (var turn = 0u; turn < each; turn++) {
        let chunk = slice * each + turn;
        let unit = chunk * CHUNK_UNITS + lane / 16u;
        for (var i = 0u; i < LOADS; i++) {
            if TOKENS > 1u || lane < 16u {
                tile_x[own_x + (2u * i + lane / 16u) * ROW4 + lane % 16u] = inputs[i];
            }
        }
        inputs = inputs_at(chunk + 1u, token, lane);
        put_unit(upper, unit, to);
        upper = unit_of(row, unit + CHUNK_UNITS);
        subgroupBarrier();
        let x0 = coopLoad<coop_mat16x16<f16, B>>(&tile_x[own_x], stride);
        let x1 = coopLoad<coop_mat16x16<f16, B>>(&tile_x[own_x + 4u], stride);
        let x2 = coopLoad<coop_mat16x16<f16, B>>(&tile_x[own_x + 8u], stride);
        let x3 = coopLoad<coop_mat16x16<f16, B>>(&tile_x[own_x + 12u], stride);
        upper_sum = add_chunk(upper_sum, tile, x0, x1, x2, x3);
        subgroupBarrier();
        put_unit(lower, unit, to);
        lower = unit_of(row + 16u, unit + CHUNK_UNITS);
        subgroupBarrier();
        lower_sum = add_chunk(lower_sum, tile, x0, x1, x2, x3);
        subgroupBarrier();
    }
    coopStore(upper_sum, &sums[slice * SUMS], 16u);
    workgroupBarrier();
    give_slices(group.x * 32u, token, local);
    workgroupBarrier();
    coopStore(lower_sum, &sums[slice * SUMS], 16u);
    workgroupBarrier();
    give_slices(group.x * 32u + 16u, token, local);
}

// A row and token of a tile, or a gate with its up, from the slices' sums.
fn give_slices(first: u32, token: u32, local: u32) {
    let row = first + local % 16u;
    let t = token + local / 16u;
    if row >= p.matrix.rows || t >= p.tokens {
        return;
    }
    if p.parts[0].mode < GATE_SILU {
        give(p.first + row, t, slices_of(local));
    } else if (row & 1u) == 0u {
        give_gated(p.first + row, t, slices_of(local), slices_of(local + 1u));
    }
}

fn slices_of(source: u32) -> f32 {
    var total = 0.0;
    for (var slice = 0u; slice < SLICES; slice++) {
        total += sums[slice * SUMS + source];
    }
    return p.input_scale * total;
}
