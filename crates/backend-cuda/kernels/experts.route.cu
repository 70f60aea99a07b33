// experts.route: which experts each token goes to, with which weights; and the list of work that
// makes.
//
// A warp takes some rows of the router for a group of tokens; a score is summed in one order whatever
// else runs. The last block of a group of tokens chooses for them, in the arithmetic of
// ops::experts::Routing::choose: the best first, equals in ascending order. Each choice takes the next
// place in its expert's list, and the last block of all cuts the lists into items of at most
// `item_tokens`. The order of tokens within a list may differ from run to run; it changes no result.
//
// Reads the router once for a group (1 MB for 128 experts of 2,048 columns, from L2 but for the first
// time): bound by latency for few tokens, by f32 arithmetic for many. On Hopper a few tokens have a
// cluster each, which norms their rows, too.

enum Scoring { SOFTMAX = 0, SOFTMAX_NORMED = 1, SOFTMAX_OF_CHOSEN = 2, SIGMOID = 3, SIGMOID_NORMED = 4 };

struct ExpertItem {
    u32 expert;
    u32 first;   // in `entries`
    u32 count;
    u32 unused;
};

// Rows that are normed on their way, where there are any.
struct NormedInput {
    const float* rows;
    const float* weight;
    u32 width;
    float epsilon;
};

struct RouteArguments {
    const u32* tokens;
    const u16* input;           // [tokens, stride]
    const float* router;        // [experts, width]
    const float* router_bias;   // [experts], or none
    const float* choice_bias;   // [experts], added for the choice only; or none
    const float* weight_scales; // [experts], multiply the weights of the chosen; or none
    float* scores;              // [tokens, experts]
    u32* chosen;                // [tokens, used]
    float* factors;             // [tokens, used]
    u32* entries;               // [experts, capacity]: token * used + place
    ExpertItem* items;
    u32* item_count;
    u32* counts;                // [experts], zero between launches; so are both below
    u32* finished;
    u32* group_finished;        // [groups of tokens]
    u32 input_stride, width;
    u32 experts, used, scoring, groups, groups_used;
    float scale, sharpness;     // of weights; of scores before they are made weights
    u32 item_tokens, capacity;
    NormedInput normed;         // experts_route_few only: what `input` is made of
};

#define EXPERTS_MAX 512u
#define USED_MAX 32u
// Of a lane: every 32nd expert.
#define OWN_MAX (EXPERTS_MAX / 32)


// Larger is better; what is no number comes last, and -0 equals 0. Never 0, which is nobody's.
__device__ __forceinline__ u32 ordered(float value) {
    if (value != value) return 1;
    const u32 bits = __float_as_uint(value + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The best of the warp's lanes: the largest key, then the lowest index.
__device__ __forceinline__ u32 best_of_warp(u32 key, u32 index) {
#if __CUDA_ARCH__ >= 800
    const u32 most = __reduce_max_sync(0xffffffff, key);
    return __reduce_min_sync(0xffffffff, key == most ? index : 0xffffffffu);
#else
    for (int step = 16; step > 0; step /= 2) {
        const u32 other_key = __shfl_xor_sync(0xffffffff, key, step);
        const u32 other = __shfl_xor_sync(0xffffffff, index, step);
        if (other_key > key || (other_key == key && other < index)) key = other_key, index = other;
    }
    return index;
#endif
}

// 8 columns of ROWS of the router's rows that a lane holds, DEEP times: every 32nd 8 of a row.
template <u32 ROWS, u32 DEEP>
struct RouterPart {
    float w[DEEP][ROWS][8];

    // Columns from `first` on; beyond the width, zeros. Beyond the last expert its twin stands in.
    __device__ __forceinline__ void load(
        const RouteArguments& arguments, u32 expert, u32 first, u32 lane) {
        const u32 width = arguments.width;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const float* row =
                arguments.router + (size_t)min(expert + r, arguments.experts - 1) * width;
#pragma unroll
            for (u32 h = 0; h < DEEP; h++) {
                const u32 column = first + 256 * h + 8 * lane;
                if (width % 8 == 0 && column < width) {
                    *(float4*)w[h][r] = __ldg((const float4*)(row + column));
                    *(float4*)(w[h][r] + 4) = __ldg((const float4*)(row + column + 4));
                } else {
#pragma unroll
                    for (u32 i = 0; i < 8; i++)
                        w[h][r][i] = column + i < width ? __ldg(row + column + i) : 0.0f;
                }
            }
        }
    }
};

// Scores of GROUP tokens for ROWS of a warp's experts, whose first columns are in `part`.
// Rows of inputs start `stride` apart; `put(n, expert, score)` is called by one lane.
template <u32 GROUP, u32 ROWS, u32 DEEP, typename Put>
__device__ __forceinline__ void score(const RouteArguments& arguments,
    RouterPart<ROWS, DEEP>& part, u32 expert, const u16* input, u32 stride, u32 count, u32 lane,
    Put put) {
    input += 8 * lane;
    float sums[GROUP][ROWS] = {};
    for (u32 column = 0; column < arguments.width; column += 256 * DEEP) {
        if (column > 0) part.load(arguments, expert, column, lane);
        uint4 x[DEEP][GROUP];
#pragma unroll
        for (u32 h = 0; h < DEEP; h++)
#pragma unroll
            for (u32 n = 0; n < GROUP; n++) {
                // Rows are padded with zeros to whole chunks of 64; beyond the last its twin stands in.
                const u32 at = column + 256 * h;
                x[h][n] = make_uint4(0, 0, 0, 0);
                if (at + 8 * lane < arguments.width)
                    x[h][n] = *(const uint4*)(input + (size_t)min(n, count - 1) * stride + at);
            }
#pragma unroll
        for (u32 h = 0; h < DEEP; h++)
#pragma unroll
            for (u32 n = 0; n < GROUP; n++) {
                const u32 pairs[4] = {x[h][n].x, x[h][n].y, x[h][n].z, x[h][n].w};
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float low = low_half(pairs[i]), high = high_half(pairs[i]);
#pragma unroll
                    for (u32 r = 0; r < ROWS; r++) {
                        sums[n][r] = __fmaf_rn(part.w[h][r][2 * i], low, sums[n][r]);
                        sums[n][r] = __fmaf_rn(part.w[h][r][2 * i + 1], high, sums[n][r]);
                    }
                }
            }
    }
#pragma unroll
    for (u32 n = 0; n < GROUP; n++) {
        if (n >= count) break;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            float sum = sums[n][r];
            for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
            if (lane > 0 || expert + r >= arguments.experts) continue;
            if (arguments.router_bias) sum += arguments.router_bias[expert + r];
            put(n, expert + r, sum);
        }
    }
}

// The groups of experts that are open, as bits; `ranks` of all experts, in shared memory.
__device__ u32 best_groups(const RouteArguments& arguments, const float* ranks, u32 lane) {
    const u32 in_group = arguments.experts / arguments.groups;
    float first = MINUS_INFINITY, second = MINUS_INFINITY;
    if (lane < arguments.groups)
        for (u32 e = lane * in_group; e < (lane + 1) * in_group; e++) {
            if (ranks[e] > first) second = first, first = ranks[e];
            else if (ranks[e] > second) second = ranks[e];
        }
    const float worth = arguments.scoring < SIGMOID ? first : first + second;
    u32 key = lane < arguments.groups ? ordered(worth) : 0;
    u32 open = 0;
    for (u32 i = 0; i < arguments.groups_used; i++) {
        const u32 group = best_of_warp(key, lane);
        open |= 1u << group;
        if (lane == group) key = 0;
    }
    return open;
}

// What a block's tokens are chosen by, in shared memory.
template <u32 GROUP>
struct Choices {
    float ranks[GROUP][EXPERTS_MAX];
    u32 keys[GROUP][EXPERTS_MAX];  // up to whole quads
    u32 chosen[GROUP][USED_MAX];
};

// A token's scores, as a warp holds them: a lane has every 32nd expert's.
struct TokenScores {
    float most, all;

    // Leaves the keys by which experts are ordered. `score_of(expert)` is a token's.
    template <typename ScoreOf>
    __device__ __forceinline__ void read(
        const RouteArguments& arguments, float* ranks, u32* keys, u32 lane, ScoreOf score_of) {
        const u32 experts = arguments.experts, scoring = arguments.scoring;
        const bool has_groups = arguments.groups_used < arguments.groups;
        float own[OWN_MAX];
        most = MINUS_INFINITY;
#pragma unroll
        for (u32 i = 0; i < OWN_MAX; i++) {
            const u32 e = 32 * i + lane;
            if (32 * i >= experts) break;
            own[i] = e < experts ? score_of(e) : MINUS_INFINITY;
            most = fmaxf(most, own[i]);
        }
        for (int step = 16; step > 0; step /= 2)
            most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, step));
        all = 0.0f;
#pragma unroll
        for (u32 i = 0; i < OWN_MAX; i++) {
            const u32 e = 32 * i + lane;
            if (32 * i >= experts) break;
            if (scoring == SOFTMAX) all += expf((own[i] - most) * arguments.sharpness);
            float rank = scoring < SIGMOID ? own[i] : sigmoid(own[i]);
            if (arguments.choice_bias && e < experts) rank += arguments.choice_bias[e];
            keys[e] = e < experts ? ordered(rank) : 0;
            if (has_groups && e < experts) ranks[e] = rank;
        }
        __syncwarp();
        if (!has_groups) return;
        const u32 open = best_groups(arguments, ranks, lane);
        for (u32 e = lane; e < experts; e += 32)
            if (!(open >> (e / (experts / arguments.groups)) & 1)) keys[e] = 0;
    }

    // The weights of the chosen, a lane one of them, and their places in the experts' lists.
    template <typename ScoreOf>
    __device__ __forceinline__ void give(const RouteArguments& arguments, u32 token, u32 tokens,
        const u32* chosen_all, u32 lane, ScoreOf score_of) const {
        const u32 used = arguments.used, scoring = arguments.scoring;
        const u32 chosen = lane < used ? chosen_all[lane] : 0;
        const float score = lane < used ? score_of(chosen) : 0.0f;
        const float weight =
            scoring < SIGMOID ? expf((score - most) * arguments.sharpness) : sigmoid(score);
        float total = 0.0f;
        for (u32 k = 0; k < used; k++) total += __shfl_sync(0xffffffff, weight, k);
        if (scoring == SOFTMAX) {
            total = all;
            for (int step = 16; step > 0; step /= 2)
                total += __shfl_xor_sync(0xffffffff, total, step);
        }
        if (scoring == SIGMOID) total = 1.0f;
        if (scoring == SIGMOID_NORMED) total += 1e-20f;
        if (lane >= used) return;
        const u32 entry = token * used + lane;
        arguments.chosen[entry] = chosen;
        float factor = weight / total * arguments.scale;
        if (arguments.weight_scales) factor *= arguments.weight_scales[chosen];
        arguments.factors[entry] = factor;
        if (tokens == 1) {
            // Nobody else's: each choice is an item.
            arguments.items[lane] = {chosen, chosen * arguments.capacity, 1, 0};
            arguments.entries[(size_t)chosen * arguments.capacity] = entry;
            if (lane == 0) *arguments.item_count = used;
            return;
        }
        const u32 place = atomicAdd(arguments.counts + chosen, 1);
        arguments.entries[(size_t)chosen * arguments.capacity + place] = entry;
    }
};

// How many experts stand before one of this key: those of larger keys, and of equal ones those of
// lower numbers. `PARTS` threads that follow each other count a part of them each.
template <u32 PARTS>
__device__ __forceinline__ u32 place_of(const u32* keys, u32 expert, u32 experts, u32 part) {
    const u32 key = keys[expert];
    u32 before = 0;
    for (u32 first = 4 * part; first < experts; first += 4 * PARTS) {
        const uint4 four = *(const uint4*)(keys + first);
        before += four.x > key || (four.x == key && first < expert);
        before += four.y > key || (four.y == key && first + 1 < expert);
        before += four.z > key || (four.z == key && first + 2 < expert);
        before += four.w > key || (four.w == key && first + 3 < expert);
    }
#pragma unroll
    for (u32 step = 1; step < PARTS; step *= 2)
        before += __shfl_xor_sync(0xffffffff, before, step);
    return before;
}

// The choices of GROUP tokens, by all THREADS of a block: a warp reads a token's scores, then each
// expert finds its own place among them, so that no choice waits for the one before. The scores are
// `score_of(token, expert)`.
template <u32 GROUP, u32 THREADS, typename ScoreOf>
__device__ __forceinline__ void choose(
    const RouteArguments& arguments, u32 first, u32 tokens, u32 warp, u32 lane, ScoreOf score_of) {
    __shared__ __align__(16) Choices<GROUP> choices;
    // Threads of an expert.
    constexpr u32 PARTS = THREADS / 128;
    const u32 count = min(GROUP, tokens - first), experts = arguments.experts;
    const auto own_score = [&](u32 e) { return score_of(first + warp, e); };
    TokenScores scores;
    if (warp < count)
        scores.read(arguments, choices.ranks[warp], choices.keys[warp], lane, own_score);
    __syncthreads();
    for (u32 n = 0; n < count; n++)
        for (u32 e = threadIdx.x / PARTS; e < (experts + 15) / 16 * 16; e += 128) {
            const u32 expert = min(e, experts - 1), part = threadIdx.x % PARTS;
            const u32 place = place_of<PARTS>(choices.keys[n], expert, experts, part);
            if (place < arguments.used && part == 0) choices.chosen[n][place] = expert;
        }
    __syncthreads();
    if (warp < count)
        scores.give(arguments, first + warp, tokens, choices.chosen[warp], lane, own_score);
}

// Cuts the experts' lists into items, by the first warp.
__device__ void list_items(const RouteArguments& arguments, u32 lane) {
    const u32 size = arguments.item_tokens;
    u32 before = 0;
    for (u32 first = 0; first < arguments.experts; first += 32) {
        const u32 e = first + lane;
        u32 count = 0;
        if (e < arguments.experts) {
            count = __ldcg(arguments.counts + e);
            arguments.counts[e] = 0;
        }
        const u32 own = (count + size - 1) / size;
        u32 sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const u32 other = __shfl_up_sync(0xffffffff, sum, step);
            if (lane >= step) sum += other;
        }
        u32 item = before + sum - own;
        for (u32 at = 0; at < count; at += size, item++)
            arguments.items[item] = {e, e * arguments.capacity + at, min(size, count - at), 0};
        before += __shfl_sync(0xffffffff, sum, 31);
    }
    if (lane == 0) *arguments.item_count = before;
}

// Whether this block is the last of `count` to come here; what the others wrote is seen then.
__device__ __forceinline__ bool is_last(u32* counter, u32 count, u32* shared) {
    if (count == 1) {
        __syncthreads();
        return true;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared = atomicAdd(counter, 1) + 1 == count;
        if (*shared) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    return *shared;
}

template <u32 GROUP, u32 ROWS, u32 DEEP>
__device__ __forceinline__ void route(const RouteArguments& arguments) {
    __shared__ u32 answer;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 tokens = *arguments.tokens, first = blockIdx.y * GROUP;
    const u32 expert = (blockIdx.x * 8 + warp) * ROWS;
    let_next_start();
    // The router's rows are asked for while the kernel before still runs.
    RouterPart<ROWS, DEEP> part;
    part.load(arguments, expert, 0, lane);
    wait_for_previous();
    if (first < tokens && expert < arguments.experts)
        score<GROUP, ROWS, DEEP>(arguments, part, expert,
            arguments.input + (size_t)first * arguments.input_stride, arguments.input_stride,
            min(GROUP, tokens - first), lane, [&](u32 n, u32 e, float score) {
                arguments.scores[(size_t)(first + n) * arguments.experts + e] = score;
            });
    if (!is_last(arguments.group_finished + blockIdx.y, gridDim.x, &answer)) return;
    if (first < tokens)
        choose<GROUP, 256>(arguments, first, tokens, warp, lane, [&](u32 token, u32 e) {
            return __ldcg(arguments.scores + (size_t)token * arguments.experts + e);
        });
    if (!is_last(arguments.finished, gridDim.y, &answer)) return;
    if (warp == 0 && tokens != 1) list_items(arguments, lane);
}

// For few tokens: many blocks, for their latency. For many: little to load for each product.
extern "C" __global__ void __launch_bounds__(256)
    experts_route(const __grid_constant__ RouteArguments arguments) {
    route<2, 1, 8>(arguments);
}

extern "C" __global__ void __launch_bounds__(256)
    experts_route_many(const __grid_constant__ RouteArguments arguments) {
    route<8, 4, 1>(arguments);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Blocks of a cluster.
#define ROUTERS 8u

extern __shared__ __align__(16) u16 shared_halves[];

// A few tokens, a cluster each: each of its blocks norms the row for itself, and the scores meet in the
// first one's shared memory, which chooses. So they do not pass through memory.
extern "C" __global__ void __cluster_dims__(ROUTERS, 1, 1) __launch_bounds__(NORM_THREADS, 1)
    experts_route_few(const __grid_constant__ RouteArguments arguments) {
    __shared__ float scores[EXPERTS_MAX];
    __shared__ float sums[16];
    __shared__ u32 answer;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = blockIdx.x % ROUTERS;
    const u32 warps = NORM_THREADS / 32, experts = arguments.experts, width = arguments.width;
    const NormedInput& normed = arguments.normed;
    const u32 tokens = *arguments.tokens, token = blockIdx.y;
    const u32 first = rank * warps + warp;
    RouterPart<1, 8> part;
    part.load(arguments, first, 0, lane);
    NormWeights weights;
    if (normed.rows) load_norm(weights, normed.weight, width);
    u32 scores_at = (u32)__cvta_generic_to_shared(scores);
    asm("mapa.shared::cluster.u32 %0, %0, 0;" : "+r"(scores_at));
    u16* input = (u16*)arguments.input + (size_t)token * arguments.input_stride;
    let_next_start();
    wait_for_previous();
    if (token < tokens) {
        if (normed.rows)
            norm_row(normed.rows + (size_t)token * width, weights, normed.weight, width,
                normed.epsilon, sums, [&](u32 i, u16 half) {
                    shared_halves[i] = half;
                    // Whoever comes next reads it, too.
                    if (rank == 0) input[i] = half;
                });
        else
            for (u32 i = threadIdx.x; i < width; i += NORM_THREADS) shared_halves[i] = input[i];
        for (u32 i = width + threadIdx.x; i < (width + 7) / 8 * 8; i += NORM_THREADS)
            shared_halves[i] = 0;
        __syncthreads();
        for (u32 expert = first; expert < experts; expert += ROUTERS * warps) {
            if (expert > first) part.load(arguments, expert, 0, lane);
            score<1, 1, 8>(arguments, part, expert, shared_halves, 0, 1, lane,
                [&](u32, u32 e, float score) {
                    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(scores_at + 4 * e),
                        "f"(score)
                        : "memory");
                });
        }
        asm volatile(
            "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
                : "memory");
        if (rank == 0)
            choose<1, NORM_THREADS>(
                arguments, token, tokens, warp, lane, [&](u32, u32 e) { return scores[e]; });
    }
    if (rank > 0) return;
    if (!is_last(arguments.finished, gridDim.y, &answer)) return;
    if (warp == 0 && tokens != 1) list_items(arguments, lane);
}

#endif
