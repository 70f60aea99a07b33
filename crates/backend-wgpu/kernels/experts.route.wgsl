// Which experts a token goes to, and with which weights: ops::experts::Routing::choose. A workgroup
// a token; what is chosen is kept as pairs of floats, an expert's number and its weight.

struct Params {
    scores: u32,
    scores_stride: u32,
    // Added for the choice, or NONE.
    bias: u32,
    choices: u32,
    choices_stride: u32,
    experts: u32,
    used: u32,
    // As src/experts.rs numbers them.
    scoring: u32,
    groups: u32,
    groups_used: u32,
    scale: f32,
    // Multiplies scores before softmax makes weights of them.
    sharpness: f32,
    // What multiplies the weights of those that were chosen, or NONE.
    weight_scales: u32,
}
var<immediate> p: Params;

const SOFTMAX = 0u;
const SOFTMAX_OF_CHOSEN = 1u;
const SIGMOID = 2u;
const SIGMOID_NORMED = 3u;
const LOWEST = -3.4028235e38;

var<workgroup> ranks: array<f32, EXPERTS_MAX>;
var<workgroup> is_open: array<u32, EXPERTS_MAX>;
var<workgroup> worths: array<f32, EXPERTS_MAX>;
var<workgroup> best_rank: array<f32, THREADS>;
var<workgroup> best: array<u32, THREADS>;

fn sigmoid(value: f32) -> f32 {
    return 1.0 / (1.0 + exp(-value));
}

fn score_of(token: u32, expert: u32) -> f32 {
    return work[p.scores + token * p.scores_stride + expert];
}

// The best of two experts, the first of equals; NONE is no expert.
fn is_better(rank: f32, expert: u32, than: f32, other: u32) -> bool {
    if expert == NONE || other == NONE {
        return other == NONE;
    }
    return rank > than || (rank == than && expert < other);
}

// What a group is worth: its best two sigmoids, or its best score.
fn worth_of(group: u32) -> f32 {
    let each = p.experts / p.groups;
    var first = LOWEST;
    var second = LOWEST;
    for (var i = group * each; i < (group + 1u) * each; i++) {
        if ranks[i] > first {
            second = first;
            first = ranks[i];
        } else if ranks[i] > second {
            second = ranks[i];
        }
    }
    return select(first + second, first, p.scoring < SIGMOID);
}

fn open_groups(local: u32) {
    for (var group = local; group < p.groups; group += THREADS) {
        worths[group] = worth_of(group);
    }
    workgroupBarrier();
    let each = p.experts / p.groups;
    for (var group = local; group < p.groups; group += THREADS) {
        // How many groups are better; equals in ascending order.
        var before = 0u;
        for (var other = 0u; other < p.groups; other++) {
            before += u32(is_better(worths[other], other, worths[group], group));
        }
        for (var i = group * each; i < (group + 1u) * each; i++) {
            is_open[i] = u32(before < p.groups_used);
        }
    }
}

fn weigh(token: u32) {
    let to = p.choices + token * p.choices_stride;
    var most = LOWEST;
    var total = 0.0;
    if p.scoring < SIGMOID {
        for (var i = 0u; i < p.experts; i++) {
            most = max(most, score_of(token, i));
        }
    }
    if p.scoring == SOFTMAX {
        for (var i = 0u; i < p.experts; i++) {
            total += exp((score_of(token, i) - most) * p.sharpness);
        }
    }
    for (var k = 0u; k < p.used; k++) {
        let score = score_of(token, u32(work[to + 2u * k]));
        let soft = exp((score - most) * p.sharpness);
        let own = select(sigmoid(score), soft, p.scoring < SIGMOID);
        put(to + 2u * k + 1u, own);
        total += select(0.0, own, p.scoring == SOFTMAX_OF_CHOSEN || p.scoring == SIGMOID_NORMED);
    }
    if p.scoring == SIGMOID {
        total = 1.0;
    }
    if p.scoring == SIGMOID_NORMED {
        total += 1e-20;
    }
    for (var k = 0u; k < p.used; k++) {
        var weight = work[to + 2u * k + 1u] / total * p.scale;
        if p.weight_scales != NONE {
            weight *= vectors[p.weight_scales + u32(work[to + 2u * k])];
        }
        put(to + 2u * k + 1u, weight);
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let token = group.x;
    for (var i = local; i < p.experts; i += THREADS) {
        var rank = score_of(token, i);
        if p.scoring >= SIGMOID {
            rank = sigmoid(rank);
        }
        if p.bias != NONE {
            rank += vectors[p.bias + i];
        }
        ranks[i] = rank;
        is_open[i] = 1u;
    }
    workgroupBarrier();
    if p.groups_used < p.groups {
        open_groups(local);
    }
    workgroupBarrier();
    for (var k = 0u; k < p.used; k++) {
        var own = NONE;
        for (var i = local; i < p.experts; i += THREADS) {
            if is_open[i] == 1u && (own == NONE || ranks[i] > ranks[own]) {
                own = i;
            }
        }
        best[local] = own;
        best_rank[local] = ranks[select(own, 0u, own == NONE)];
        workgroupBarrier();
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            let other = local + half;
            if local < half && is_better(best_rank[other], best[other], best_rank[local], best[local]) {
                best[local] = best[other];
                best_rank[local] = best_rank[other];
            }
            workgroupBarrier();
        }
        if local == 0u {
            // Groups that are open have as many experts as are used.
            let chosen = min(best[0], p.experts - 1u);
            is_open[chosen] = 0u;
            put(p.choices + token * p.choices_stride + 2u * k, f32(chosen));
        }
        workgroupBarrier();
    }
    if local == 0u {
        weigh(token);
    }
}
