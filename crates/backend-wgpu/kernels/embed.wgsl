// Rows of the embedding's table: one workgroup a token, each invocation eight columns at a time.

struct Params {
    matrix: Matrix,
    // The first row of this part in the table: rows of other parts are left to their launches.
    first: u32,
    output: u32,
    stride: u32,
    width: u32,
    scale: f32,
}
var<immediate> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    let row = of_token(token, TOKEN_ID) - p.first;
    // Of an earlier part, the difference has wrapped around.
    if row >= p.matrix.rows {
        return;
    }
    for (var part = local; part < 4u * p.matrix.units; part += 64u) {
        let w = eight(codes_of(row, part / 4u), part % 4u);
        for (var i = 0u; i < 8u; i++) {
            let column = part * 8u + i;
            if column < p.width {
                let value = select(w.high[i & 3u], w.low[i & 3u], i < 4u);
                work[p.output + token * p.stride + column] = p.scale * value;
            }
        }
    }
}
