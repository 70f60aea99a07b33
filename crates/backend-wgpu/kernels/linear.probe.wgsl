// Where a lane's elements of matrices are: each is its lane's number times eight and its own.

@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) local: u32) {
    let first = f16(f32(8u * local));
    let a = vec2<f16>(first, first + 1.0h);
    let b = a + vec2<f16>(2.0h);
    let c = a + vec2<f16>(4.0h);
    let d = a + vec2<f16>(6.0h);
    coopStore(fragment_a(a, b, c, d), &rounded[0], 16u);
    coopStore(fragment_b(a, b, c, d), &rounded[256], 16u);
}
