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
    let upper = vec4<f32>(0.0, 1.0, 2.0, 3.0) + vec4<f32>(f32(8u * local));
    coopStore(results_of(upper, upper + vec4<f32>(4.0)), &work[256], 16u);
}
