// Rows of a table, stored or added: one workgroup a token, each invocation eight columns at a time.

struct Params {
    matrix: Matrix,
    // The first row of this part in the table: rows of other parts are left to their launches.
    first: u32,
    output: u32,
    stride: u32,
    width: u32,
    scale: f32,
    adds: u32,
    // Which row is a token's, as src/lowering.rs numbers it, and what it is counted from or where
    // it is listed in `step`.
    by: u32,
    begin: u32,
}
var<immediate> p: Params;

const BY_TOKEN = 0u;
const BY_POSITION = 1u;
const BY_NOTHING = 2u;

fn row_of(token: u32) -> u32 {
    switch p.by {
        case BY_TOKEN: { return of_token(token, TOKEN_ID); }
        case BY_POSITION: { return p.begin + of_token(token, TOKEN_POSITION); }
        case BY_NOTHING: { return 0u; }
        default: { return step[p.begin + token]; }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    let row = row_of(token) - p.first;
    // Of an earlier part, the difference has wrapped around.
    if row >= p.matrix.rows {
        return;
    }
    for (var part = local; part < 4u * p.matrix.units; part += 64u) {
        let w = eight(codes_of(row, part / 4u), part % 4u);
        for (var i = 0u; i < 8u; i++) {
            let column = part * 8u + i;
            if column < p.width {
                let value = p.scale * select(w.high[i & 3u], w.low[i & 3u], i < 4u);
                let at = p.output + token * p.stride + column;
                put(at, select(value, work[at] + value, p.adds == 1u));
            }
        }
    }
}
