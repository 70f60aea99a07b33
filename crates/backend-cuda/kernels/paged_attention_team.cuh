
// paged_attention for a few short rows on Hopper: a team of blocks of threads (a cluster) takes a tile
// whole, all of 1,024 positions at once, and its warps merge what they read from each other's shared
// memory: no state passes through memory.
//
// The same operations in the same order as in paged_attention.cu, which this stands behind. Roof: the
// latency of one block of 64 positions and of one merge, some 5 us.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && HEAD <= 128 && KV_BITS == 16 && !WHOLE

// Blocks of a team, and the positions' blocks that it takes at once.
#define TEAM 4u
#define TEAM_BLOCKS (TEAM * WARPS)

DEVICE void meet_team() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// What is merged of a row: a lane has CHUNKS dims side by side.
struct TeamRow {
    float maximum, sum;
    float values[CHUNKS];

    // From the shared memory of the team's block `rank`, at an address that is this block's own.
    DEVICE void read(u32 rank, u32 own, u32 lane) {
        u32 there;
        asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(rank));
        asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
            : "=f"(maximum), "=f"(sum)
            : "r"(there + 4 * HEAD));
        there += 4 * CHUNKS * lane;
        if constexpr (CHUNKS == 4)
            asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                : "=f"(values[0]), "=f"(values[CHUNKS > 1]), "=f"(values[CHUNKS > 2 ? 2 : 0]),
                  "=f"(values[CHUNKS - 1])
                : "r"(there));
        else
#pragma unroll
            for (u32 d = 0; d < CHUNKS; d++)
                asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(values[d]) : "r"(there + 4 * d));
    }

    DEVICE void merge(const TeamRow& added) {
        const float most = fmaxf(maximum, added.maximum);
        const Factors factors = merge_factors(maximum, added.maximum, most);
        maximum = most;
        sum = merged(sum, added.sum, factors);
#pragma unroll
        for (u32 d = 0; d < CHUNKS; d++) values[d] = merged(values[d], added.values[d], factors);
    }

    DEVICE void write(const AttentionArguments& arguments, const Place& place, u32 head_kv, u32 r,
        u32 lane) const {
        const float all = sum + sink_weight(arguments, place, head_kv, r, maximum);
        u16* to = output_of(arguments, place, head_kv, r);
#pragma unroll
        for (u32 d = 0; d < CHUNKS; d++)
            if (CHUNKS * lane + d < arguments.head_dim)
                to[CHUNKS * lane + d] = output_half(values[d], all);
    }
};

// Merges the states of a round of row `r` into its total, stretch by stretch. `states` are a block's
// own.
DEVICE void merge_team(TeamRow& total, const AttentionArguments& arguments,
    const Round<TEAM_BLOCKS>& round, u32 states, u32 r, u32 lane) {
    TeamRow rows[TEAM_BLOCKS];
#pragma unroll
    for (u32 w = 0; w < TEAM_BLOCKS; w++) {
        rows[w] = {MINUS_INFINITY, 0.0f, {}};
        if (round.has(round.block + w))
            rows[w].read(w / WARPS, states + 4 * (w % WARPS * STATE_FLOATS + r * STATE_ROW), lane);
    }
    const u32 first = round.first_stretch(arguments), last = round.last_stretch();
#pragma unroll
    for (u32 s = 0; s < TEAM_BLOCKS; s += STRETCH_BLOCKS) {
        const u32 stretch = (round.block + s) / STRETCH_BLOCKS;
        if (stretch < first || stretch > last) continue;
        TeamRow held = rows[s];
#pragma unroll
        for (u32 w = 1; w < STRETCH_BLOCKS; w++) held.merge(rows[s + w]);
        if (stretch == first)
            total = held;
        else
            total.merge(held);
        if (stretch == last) total.write(arguments, round.place, round.head_kv, r, lane);
    }
}

// Tiles are not split (src/step_inputs.rs). Two sets of states take turns: who writes one has met all
// who read it.
extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(32 * WARPS, 1)
    paged_attention_team(const __grid_constant__ AttentionArguments arguments) {
    __shared__ u64 barriers[WARPS][2];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float* own_stage =
        shared_floats + 2 * WARPS * STATE_FLOATS + warp * (STAGED_BYTES / sizeof(float));
    Rounds<TEAM_BLOCKS, true> walk;
    if (!walk.start(arguments, own_stage, barriers[warp], blockIdx.x / TEAM, gridDim.x / TEAM,
            blockIdx.x % TEAM * WARPS + warp, lane))
        return;
    TeamRow total;
    u32 turn = 0;
    do {
        float* states = shared_floats + turn * (WARPS * STATE_FLOATS);
        walk.attend(arguments, states + warp * STATE_FLOATS, lane);
        meet_team();
        // A warp of the team has a row.
        if (walk.own < walk.round.place.rows)
            merge_team(total, arguments, walk.round, (u32)__cvta_generic_to_shared(states), walk.own,
                lane);
        turn ^= 1;
    } while (walk.advance());
    // Nobody leaves while others read of it.
    meet_team();
}

#endif
