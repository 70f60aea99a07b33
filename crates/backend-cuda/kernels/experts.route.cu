// experts.route: which experts each token goes to, with which weights; and the list of work that
// makes.
//
// A warp takes some rows of the router for a group of tokens; a score is summed in one order whatever
// else runs. The last block of a group of tokens chooses for them, a warp a token, in the arithmetic
// of ops::experts::Routing::choose: the best first, equals in ascending order. Each choice takes the next place in its expert's list, and the last block of all
// cuts the lists into items of at most `item_tokens`. The order of tokens within a list may differ
// from run to run; it changes no result.
//
// Reads the router once for a group (1 MB for 128 experts of 2,048 columns, from L2 but for the first
// time): bound by latency for few tokens, by f32 arithmetic for many.

enum Scoring { SOFTMAX = 0, SOFTMAX_NORMED = 1, SOFTMAX_OF_CHOSEN = 2, SIGMOID = 3, SIGMOID_NORMED = 4 };

struct ExpertItem {
    u32 expert;
    u32 first;   // in `entries`
    u32 count;
    u32 unused;
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
};

#define EXPERTS_MAX 512u
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

// Scores of GROUP tokens for ROWS of a warp's experts: a lane has every 32nd 8 columns.
template <u32 GROUP, u32 ROWS>
__device__ __forceinline__ void score(const RouteArguments& arguments, u32 expert, u32 first,
    u32 tokens, u32 lane) {
    const float* router[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++)
        router[r] = arguments.router + (size_t)min(expert + r, arguments.experts - 1) * arguments.width;
    const u16* input = arguments.input + (size_t)first * arguments.input_stride;
    const u32 count = min(GROUP, tokens - first);
    float sums[GROUP][ROWS] = {};
#pragma unroll 4 / ROWS
    for (u32 column = 8 * lane; column < arguments.width; column += 256) {
        float w[ROWS][8];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
            if (arguments.width % 8 == 0) {
                *(float4*)w[r] = __ldg((const float4*)(router[r] + column));
                *(float4*)(w[r] + 4) = __ldg((const float4*)(router[r] + column + 4));
            } else {
#pragma unroll
                for (u32 i = 0; i < 8; i++)
                    w[r][i] = column + i < arguments.width ? __ldg(router[r] + column + i) : 0.0f;
            }
        uint4 x[GROUP];
#pragma unroll
        for (u32 n = 0; n < GROUP; n++)
            // Rows are padded with zeros to whole chunks of 64; beyond the last its twin stands in.
            x[n] = *(const uint4*)(input + (size_t)min(n, count - 1) * arguments.input_stride + column);
#pragma unroll
        for (u32 n = 0; n < GROUP; n++) {
            const u32 pairs[4] = {x[n].x, x[n].y, x[n].z, x[n].w};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float low = low_half(pairs[i]), high = high_half(pairs[i]);
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) {
                    sums[n][r] = __fmaf_rn(w[r][2 * i], low, sums[n][r]);
                    sums[n][r] = __fmaf_rn(w[r][2 * i + 1], high, sums[n][r]);
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
            arguments.scores[(size_t)(first + n) * arguments.experts + expert + r] = sum;
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

__device__ __forceinline__ void choose(
    const RouteArguments& arguments, u32 token, u32 tokens, float* ranks, u32 lane) {
    const u32 experts = arguments.experts, used = arguments.used, scoring = arguments.scoring;
    const float* scores = arguments.scores + (size_t)token * experts;
    float own[OWN_MAX];
    float most = MINUS_INFINITY;
#pragma unroll
    for (u32 i = 0; i < OWN_MAX; i++) {
        const u32 e = 32 * i + lane;
        if (32 * i >= experts) break;
        own[i] = e < experts ? __ldcg(scores + e) : MINUS_INFINITY;
        most = fmaxf(most, own[i]);
    }
    for (int step = 16; step > 0; step /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, step));
    float all = 0.0f;
    u32 keys[OWN_MAX];
#pragma unroll
    for (u32 i = 0; i < OWN_MAX; i++) {
        const u32 e = 32 * i + lane;
        if (32 * i >= experts) break;
        if (scoring == SOFTMAX) all += expf((own[i] - most) * arguments.sharpness);
        float rank = scoring < SIGMOID ? own[i] : sigmoid(own[i]);
        if (arguments.choice_bias && e < experts) rank += arguments.choice_bias[e];
        keys[i] = e < experts ? ordered(rank) : 0;
        if (arguments.groups_used < arguments.groups && e < experts) ranks[e] = rank;
    }
    __syncwarp();
    if (arguments.groups_used < arguments.groups) {
        const u32 open = best_groups(arguments, ranks, lane);
#pragma unroll
        for (u32 i = 0; i < OWN_MAX; i++) {
            if (32 * i >= experts) break;
            if (!(open >> ((32 * i + lane) / (experts / arguments.groups)) & 1)) keys[i] = 0;
        }
    }
    u32 chosen = 0;
    for (u32 k = 0; k < used; k++) {
        u32 key = 0, index = 0xfffffffe;
#pragma unroll
        for (u32 i = 0; i < OWN_MAX; i++) {
            if (32 * i >= experts) break;
            if (keys[i] > key) key = keys[i], index = 32 * i + lane;
        }
        const u32 expert = best_of_warp(key, index);
#pragma unroll
        for (u32 i = 0; i < OWN_MAX; i++) {
            if (32 * i >= experts) break;
            if (32 * i + lane == expert) keys[i] = 0;
        }
        if (k == lane) chosen = expert;
    }
    // Lane k has the kth choice.
    const float score = lane < used ? __ldcg(scores + chosen) : 0.0f;
    const float weight =
        scoring < SIGMOID ? expf((score - most) * arguments.sharpness) : sigmoid(score);
    float total = 0.0f;
    for (u32 k = 0; k < used; k++) total += __shfl_sync(0xffffffff, weight, k);
    if (scoring == SOFTMAX) {
        for (int step = 16; step > 0; step /= 2) all += __shfl_xor_sync(0xffffffff, all, step);
        total = all;
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

template <u32 GROUP, u32 ROWS>
__device__ __forceinline__ void route(const RouteArguments& arguments) {
    __shared__ float ranks[GROUP][EXPERTS_MAX];
    __shared__ u32 answer;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 tokens = *arguments.tokens, first = blockIdx.y * GROUP;
    const u32 expert = (blockIdx.x * 8 + warp) * ROWS;
    let_next_start();
    // The router's rows may be asked for while the kernel before still runs.
    if (ROWS == 1 && expert < arguments.experts)
        for (u32 column = 32 * lane; column < arguments.width; column += 1024)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(
                arguments.router + (size_t)expert * arguments.width + column));
    wait_for_previous();
    if (first < tokens && expert < arguments.experts)
        score<GROUP, ROWS>(arguments, expert, first, tokens, lane);
    if (!is_last(arguments.group_finished + blockIdx.y, gridDim.x, &answer)) return;
    if (warp < GROUP && first + warp < tokens)
        choose(arguments, first + warp, tokens, ranks[warp % GROUP], lane);
    if (!is_last(arguments.finished, gridDim.y, &answer)) return;
    if (warp == 0 && tokens != 1) list_items(arguments, lane);
}

// For few tokens: many blocks, for their latency. For many: little to load for each product.
extern "C" __global__ void __launch_bounds__(256)
    experts_route(const __grid_constant__ RouteArguments arguments) {
    route<2, 1>(arguments);
}

extern "C" __global__ void __launch_bounds__(256)
    experts_route_many(const __grid_constant__ RouteArguments arguments) {
    route<8, 4>(arguments);
}
