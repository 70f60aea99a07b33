// sample_rows: logits of a row and the state of its slot to the next token; see ops::sample_rows.
//
// A block of 1024 threads a sampled row, one sample after another where guesses are checked. Sums
// of weights are integers (44 bits after the point), so that they are the same in any order. What
// is sorted in the reference is found by radix selection here: the same tokens, without a sort.

#define TOP_MAX 20u
#define NOT_SAMPLED 0xffffffffu
#define NOT_FINITE 0xfffffffeu
#define NO_REPORT 0xffffffffu
#define HAS_PENALTIES 1u
#define HAS_BIAS 2u
#define HAS_BANS 4u
#define HAS_GRAMMAR 8u
#define BANNED 0x80000000u

struct SlotParams {
    float temperature, top_p, min_p, repetition, presence, frequency;
    u32 top_k, banned_until;
    u64 seed;
    u32 flags, logprobs;
};

struct SampledRow {
    u32 slot, sample_index, place, proposals_first, proposals, unused[3];
};

struct SampleArguments {
    const StepHeader* header;
    const SampledRow* rows;
    const u32* sources;
    const SlotParams* params;
    u32* marks;         // [slots, vocabulary]: how often seen, plus one; bit 31: banned
    const float* bias;  // [slots, vocabulary]
    u32* slots_last;
    float* logits;      // [places, vocabulary], changed
    u32* tokens;        // [places]
    float* logprobs;    // [places]
    u32* top_ids;       // [places, TOP_MAX]
    float* top_logprobs;
    const u32* allowed; // [slots, allowed_words]: what a grammar allows next, a bit a token
    u32 vocabulary;
    u32 allowed_words;
};

struct Shared {
    u64 histogram[256];
    u64 scan[32];
    double doubles[32];
    float floats[32];
    u32 words[32];
    u32 flag;
    u32 found;
    u64 above;
};

template <typename T, typename F>
__device__ __forceinline__ T reduce(T value, T* shared, F join) {
    for (int step = 16; step > 0; step /= 2)
        value = join(value, __shfl_xor_sync(0xffffffff, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    T total = shared[0];
    for (u32 i = 1; i < blockDim.x / 32; i++) total = join(total, shared[i]);
    return total;
}

// A value's and its id's order as one integer: larger is likelier, then the lower id.
__device__ __forceinline__ u64 ordered(float value, u32 id) {
    const u32 bits = __float_as_uint(value);
    const u32 key = bits >> 31 ? ~bits : bits | 0x80000000u;
    return ((u64)key << 32) | (0xffffffffu - id);
}

__device__ __forceinline__ float value_of(u64 order) {
    const u32 key = (u32)(order >> 32);
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ u32 id_of(u64 order) { return 0xffffffffu - (u32)order; }

__device__ __forceinline__ u64 likeliest(u64 a, u64 b) { return a > b ? a : b; }

// The likeliest below `limit` (exclusive); 0 if there is none.
__device__ u64 next_likeliest(const float* logits, u32 count, u64 limit, Shared& shared) {
    u64 best = 0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u64 order = ordered(logits[i], i);
        if (order < limit) best = likeliest(best, order);
    }
    return reduce(best, shared.scan, [](u64 a, u64 b) { return likeliest(a, b); });
}

__device__ double log_sum_exp(const float* logits, u32 count, float best, Shared& shared) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += (double)expf(logits[i] - best);
    sum = reduce(sum, shared.doubles, [](double a, double b) { return a + b; });
    return (double)best + log(sum);
}

__device__ void adjust(float* logits, u32 index, const SlotParams& params, const u32* marks,
    const float* bias, const u32* allowed, u32 count) {
    const bool bans = (params.flags & HAS_BANS) && index < params.banned_until;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        float logit = logits[i];
        const u32 mark = params.flags & (HAS_PENALTIES | HAS_BANS) ? marks[i] : 0;
        const u32 seen = mark & ~BANNED;
        if ((params.flags & HAS_PENALTIES) && seen > 0) {
            logit = logit > 0.0f ? __fdiv_rn(logit, params.repetition) : __fmul_rn(logit, params.repetition);
            if (seen > 1)
                logit = __fadd_rn(logit, -__fadd_rn(params.presence,
                    __fmul_rn(params.frequency, (float)(seen - 1))));
        }
        if (params.flags & HAS_BIAS) logit = __fadd_rn(logit, bias[i]);
        if (bans && (mark & BANNED)) logit = MINUS_INFINITY;
        if ((params.flags & HAS_GRAMMAR) && !(allowed[i / 32] >> i % 32 & 1)) logit = MINUS_INFINITY;
        logits[i] = logit;
    }
    __syncthreads();
}

// Tokens that may still be drawn: heavier than `key`, or as heavy with no larger id.
struct Kept {
    u32 key, id;
    float weight_min;
};

struct Candidates {
    const float* logits;
    u32 count;
    float best, inverse;
    Kept kept;

    __device__ __forceinline__ float weight(u32 i) const {
        const float weight = expf((logits[i] - best) * inverse);
        const u32 key = __float_as_uint(weight);
        const bool in = key > kept.key || (key == kept.key && i <= kept.id);
        return in && weight >= kept.weight_min ? weight : -1.0f;
    }
};

__device__ __forceinline__ u64 mass(float weight) { return (u64)((double)weight * 17592186044416.0); }

// Walks candidates from the heaviest: the first at which the measure (their number, or their mass)
// reaches `target`, where `strictly` asks for more than that. Returns its weight's bits; in
// `shared.above` what lies above those of the same weight.
__device__ u32 select(const Candidates& candidates, bool by_mass, double target, bool strictly,
    Shared& shared) {
    u32 prefix = 0;
    u64 above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) shared.histogram[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < candidates.count; i += blockDim.x) {
            const float weight = candidates.weight(i);
            const u32 key = __float_as_uint(weight);
            if (weight < 0.0f || (shift < 24 && key >> (shift + 8) != prefix)) continue;
            atomicAdd(&shared.histogram[key >> shift & 255], by_mass ? mass(weight) : 1ull);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 255, lowest = 255;
            u64 sum = above;
            for (; digit >= 0; digit--) {
                const u64 with = sum + shared.histogram[digit];
                if (shared.histogram[digit]) lowest = digit, shared.above = sum;
                if (strictly ? (double)with > target : (double)with >= target) break;
                sum = with;
            }
            // Never reached: the lightest there is.
            shared.found = digit < 0 ? lowest : digit;
            if (digit >= 0) shared.above = sum;
        }
        __syncthreads();
        prefix = prefix << 8 | shared.found;
        above = shared.above;
    }
    __syncthreads();
    return prefix;
}

// Prefix sum over the block's threads, exclusive.
__device__ u64 scan(u64 value, Shared& shared) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_up_sync(0xffffffff, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) shared.scan[warp] = sum;
    __syncthreads();
    u64 before = 0;
    for (u32 i = 0; i < warp; i++) before += shared.scan[i];
    return before + sum - value;
}

// The id of the `nth` (from 0) candidate of exactly this weight, in the order of ids.
__device__ u32 nth_tie(const Candidates& candidates, u32 key, u64 nth, Shared& shared) {
    const u32 each = (candidates.count + blockDim.x - 1) / blockDim.x;
    const u32 first = threadIdx.x * each, end = min(first + each, candidates.count);
    u64 own = 0;
    for (u32 i = first; i < end; i++) own += __float_as_uint(candidates.weight(i)) == key;
    u64 before = scan(own, shared);
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    if (nth >= before && nth < before + own)
        for (u32 i = first; i < end; i++)
            if (__float_as_uint(candidates.weight(i)) == key && before++ == nth) shared.found = i;
    __syncthreads();
    return shared.found;
}

__device__ u64 total_mass(const Candidates& candidates, Shared& shared) {
    u64 sum = 0;
    for (u32 i = threadIdx.x; i < candidates.count; i += blockDim.x) {
        const float weight = candidates.weight(i);
        if (weight >= 0.0f) sum += mass(weight);
    }
    return reduce(sum, shared.scan, [](u64 a, u64 b) { return a + b; });
}

// How many of weight `key` it takes from `above` to the target.
__device__ __forceinline__ u64 ties_to(u32 key, u64 above, double target, bool strictly) {
    const u64 each = mass(__uint_as_float(key));
    if (each == 0) return 1;
    const double missing = target - (double)above;
    u64 ties = missing > 0.0 ? (u64)(missing / (double)each) : 0;
    while (strictly ? !((double)(above + ties * each) > target) : (double)(above + ties * each) < target)
        ties++;
    return ties < 1 ? 1 : ties;
}

__device__ double uniform(u64 seed, u32 index) {
    u64 z = seed + ((u64)index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (double)(z >> 11) / 9007199254740992.0;
}

__device__ u32 draw(const float* logits, u32 count, float best, const SlotParams& params, u32 index,
    Shared& shared) {
    Candidates candidates = {logits, count, best, 1.0f / params.temperature, {0, 0xffffffffu, -0.5f}};
    bool is_sorted = false;
    if (params.top_k > 0 && params.top_k < count) {
        const u32 key = select(candidates, false, (double)params.top_k, false, shared);
        const u32 id = nth_tie(candidates, key, params.top_k - shared.above - 1, shared);
        candidates.kept = {key, id, -0.5f};
        is_sorted = true;
    }
    if (params.top_p < 1.0f) {
        const double target = (double)params.top_p * (double)total_mass(candidates, shared);
        const u32 key = select(candidates, true, target, false, shared);
        const u64 ties = ties_to(key, shared.above, target, false);
        const u32 id = nth_tie(candidates, key, ties - 1, shared);
        candidates.kept = {key, id, -0.5f};
        is_sorted = true;
    }
    if (params.min_p > 0.0f) candidates.kept.weight_min = params.min_p;
    const double target =
        uniform(params.seed, index) * (double)total_mass(candidates, shared);
    if (is_sorted) {
        const u32 key = select(candidates, true, target, true, shared);
        return nth_tie(candidates, key, ties_to(key, shared.above, target, true) - 1, shared);
    }
    const u32 each = (count + blockDim.x - 1) / blockDim.x;
    const u32 first = threadIdx.x * each, end = min(first + each, count);
    u64 own = 0;
    for (u32 i = first; i < end; i++) {
        const float weight = candidates.weight(i);
        if (weight >= 0.0f) own += mass(weight);
    }
    u64 sum = scan(own, shared);
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    if ((double)sum <= target && (double)(sum + own) > target)
        for (u32 i = first; i < end; i++) {
            const float weight = candidates.weight(i);
            if (weight >= 0.0f) sum += mass(weight);
            if ((double)sum > target) {
                shared.found = i;
                break;
            }
        }
    __syncthreads();
    return shared.found;
}

// Chooses one token; NOT_FINITE where none can be chosen honestly.
__device__ u32 sample_one(const SampleArguments& arguments, const SlotParams& params, u32 slot,
    u32 index, u32 place, Shared& shared) {
    const u32 count = arguments.vocabulary;
    float* logits = arguments.logits + (size_t)place * count;
    const size_t of_slot = (size_t)slot * count;
    const bool reports = params.logprobs != NO_REPORT;
    double normalizer = 0.0;
    if (reports) {
        u64 order = next_likeliest(logits, count, ~0ull, shared);
        normalizer = log_sum_exp(logits, count, value_of(order), shared);
        for (u32 i = 0; i < min(params.logprobs, TOP_MAX); i++) {
            if (threadIdx.x == 0) {
                arguments.top_ids[place * TOP_MAX + i] = id_of(order);
                arguments.top_logprobs[place * TOP_MAX + i] =
                    (float)((double)value_of(order) - normalizer);
            }
            order = next_likeliest(logits, count, order, shared);
        }
    }
    // What the chosen token's logit was before it is changed.
    if (params.flags) {
        if (reports)
            for (u32 i = threadIdx.x; i < count; i += blockDim.x)
                arguments.logits[(size_t)(arguments.header->sampled + place) * count + i] = logits[i];
        __syncthreads();
        adjust(logits, index, params, arguments.marks + of_slot, arguments.bias + of_slot,
            arguments.allowed + (size_t)slot * arguments.allowed_words, count);
    }
    u64 best = 0;
    bool broken = false;
    for (u32 first = threadIdx.x; first < count; first += 8 * blockDim.x) {
        float some[8];
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            const u32 i = first + k * blockDim.x;
            some[k] = i < count ? logits[i] : MINUS_INFINITY;
        }
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            const u32 i = first + k * blockDim.x;
            broken |= some[k] != some[k];
            // -0 and 0 are equal: the lower id.
            if (i < count) best = likeliest(best, ordered(some[k] + 0.0f, i));
        }
    }
    if (__syncthreads_or(broken)) return NOT_FINITE;
    best = reduce(best, shared.scan, [](u64 a, u64 b) { return likeliest(a, b); });
    const float highest = value_of(best);
    if (!(fabsf(highest) <= 3.4028235e38f)) return NOT_FINITE;
    u32 token = id_of(best);
    if (!(params.temperature < 1e-5f || params.top_k == 1))
        token = draw(logits, count, highest, params, index, shared);
    if (reports && threadIdx.x == 0) {
        const size_t from = (size_t)(params.flags ? arguments.header->sampled + place : place);
        arguments.logprobs[place] = (float)((double)arguments.logits[from * count + token] - normalizer);
    }
    return token;
}

extern "C" __global__ void __launch_bounds__(1024)
    sample_rows(const __grid_constant__ SampleArguments arguments) {
    __shared__ Shared shared;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= arguments.header->sampled_rows) return;
    const SampledRow row = arguments.rows[blockIdx.x];
    const SlotParams params = arguments.params[row.slot];
    bool goes_on = true;
    for (u32 i = 0; i <= row.proposals; i++) {
        u32 token = NOT_SAMPLED;
        if (goes_on) {
            __syncthreads();
            token = sample_one(arguments, params, row.slot, row.sample_index + i, row.place + i, shared);
        }
        if (threadIdx.x == 0) {
            arguments.tokens[row.place + i] = token;
            if (token < NOT_FINITE) {
                arguments.slots_last[row.slot] = token;
                if (params.flags & HAS_PENALTIES) {
                    u32* mark = arguments.marks + (size_t)row.slot * arguments.vocabulary + token;
                    *mark += (*mark & ~BANNED) == 0 ? 2 : 1;
                }
            }
        }
        __syncthreads();
        goes_on = goes_on && token < NOT_FINITE && i < row.proposals &&
            arguments.sources[row.proposals_first + i] == token;
    }
}
