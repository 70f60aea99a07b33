// Products of many tokens by matrix units: a tile of ROWS rows and TOKENS tokens a workgroup, of which
// each 32 lanes have DOWN times 16 rows and ACROSS times 16 tokens.
//
// A weight is decoded once for TOKENS tokens, by way of workgroup memory, where inputs go too; both
// are asked for while the chunk before is multiplied.

const THREADS = 32u * WARPS;
const TILES = ROWS / 16u;
const PRODUCTS = DOWN * ACROSS;
// How many times 32 lanes are side by side.
const BESIDE = TOKENS / (16u * ACROSS);
// Groups of four inputs that an invocation brings.
const LOADS = TOKENS * 16u / THREADS;

var<workgroup> tile_x: array<vec4<f16>, TOKENS * ROW4>;

fn inputs_at(chunk: u32, token: u32, local: u32) -> array<vec4<f16>, LOADS> {
    var values: array<vec4<f16>, LOADS>;
    for (var i = 0u; i < LOADS; i++) {
        let t = min(token + local / 16u + i * (THREADS / 16u), p.tokens - 1u);
        values[i] = rounded4[(p.input + t * p.input_stride) / 4u + chunk * 16u + local % 16u];
    }
    return values;
}

@compute @workgroup_size(WARPS * 32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let warp = local / 32u;
    let row = group.x * ROWS;
    let token = group.y * TOKENS;
    let down = warp / BESIDE * DOWN * 16u;
    let beside = warp % BESIDE * ACROSS * 16u;
    let units = p.matrix.units;
    let chunks = (units + CHUNK_UNITS - 1u) / CHUNK_UNITS;
    let each = (chunks + SLICES - 1u) / SLICES;
    var totals: array<coop_mat16x16<f32, C>, PRODUCTS>;
    var held = ask_for(row, 0u, local);
    var inputs = inputs_at(0u, token, local);
    for (var slice = 0u; slice * each < chunks; slice++) {
        var products: array<coop_mat16x16<f32, C>, PRODUCTS>;
        for (var chunk = slice * each; chunk < min((slice + 1u) * each, chunks); chunk++) {
            workgroupBarrier();
            keep(held, chunk, local);
            for (var i = 0u; i < LOADS; i++) {
                tile_x[(local / 16u + i * (THREADS / 16u)) * ROW4 + local % 16u] = inputs[i];
            }
            workgroupBarrier();
            let next = min(chunk + 1u, chunks - 1u);
            held = ask_for(row, next, local);
            inputs = inputs_at(next, token, local);
            for (var k = 0u; k < min(4u, 2u * units - 4u * chunk); k++) {
                var x: array<coop_mat16x16<f16, B>, ACROSS>;
                for (var j = 0u; j < ACROSS; j++) {
                    x[j] = coopLoad<coop_mat16x16<f16, B>>(
                        &tile_x[(beside + 16u * j) * ROW4 + 4u * k], ROW4);
                }
                for (var i = 0u; i < DOWN; i++) {
                    let w = kept_rows(down + 16u * i, k, local % 32u);
                    for (var j = 0u; j < ACROSS; j++) {
                        let product = i * ACROSS + j;
                        products[product] = coopMultiplyAdd(w, x[j], products[product]);
                    }
                }
            }
        }
        for (var i = 0u; i < PRODUCTS; i++) {
            totals[i] = totals[i] + products[i];
        }
    }
    for (var i = 0u; i < PRODUCTS; i++) {
        workgroupBarrier();
        coopStore(totals[i], &sums[warp * SUMS], 16u);
        workgroupBarrier();
        let tile_row = row + down + i / ACROSS * 16u;
        let tile_token = token + beside + i % ACROSS * 16u;
        give_tile(tile_row, tile_token, warp * SUMS, local % 32u);
    }
}
