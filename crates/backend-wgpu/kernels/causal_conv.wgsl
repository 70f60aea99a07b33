// Each channel over its sequence's last tokens, then SiLU, in place: ops::causal_conv. A workgroup a
// row of the step and 64 channels, token after token, so that it does not matter how a prompt is cut.
//
// Moves every token's row once each way, and each slot's last inputs once a step.

struct Params {
    values: u32,
    values_stride: u32,
    channels: u32,
    weight: u32,
    // Where this op's guesses begin in `pages`, and how far the slots' states and guesses are apart.
    guesses: u32,
    state_stride: u32,
    slot_guesses: u32,
    guess_stride: u32,
    // Where the step's rows are in `step`.
    rows: u32,
}
var<immediate> p: Params;

// The last inputs of a channel, the oldest first; the newest is pushed before it is read.
var<private> inputs: array<f32, TAPS>;

fn push(input: f32) {
    for (var tap = 1u; tap < TAPS; tap++) {
        inputs[tap - 1u] = inputs[tap];
    }
    inputs[TAPS - 1u] = input;
}

fn keep(tail: u32) {
    for (var tap = 1u; tap < TAPS; tap++) {
        pages[tail + (tap - 1u) * p.channels] = bitcast<u32>(inputs[tap]);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = carried_row(p.rows, group.x);
    let channel = group.y * 64u + local;
    if channel >= p.channels {
        return;
    }
    let tail = row.slot * p.state_stride + channel;
    let guesses = p.guesses + row.slot * p.slot_guesses + channel;
    let weight = p.weight + channel * TAPS;
    for (var tap = 1u; tap < TAPS; tap++) {
        inputs[tap] = bitcast<f32>(pages[tail + (tap - 1u) * p.channels]);
    }
    for (var guess = 0u; guess < row.right; guess++) {
        push(bitcast<f32>(pages[guesses + guess * p.guess_stride]));
    }
    let certain = row.length - row.proposed;
    for (var token = 0u; token < row.length; token++) {
        if token == certain {
            keep(tail);
        }
        let at = p.values + (row.first + token) * p.values_stride + channel;
        let input = work[at];
        if token >= certain {
            pages[guesses + (token - certain) * p.guess_stride] = bitcast<u32>(input);
        }
        push(input);
        var sum = 0.0;
        for (var tap = 0u; tap < TAPS; tap++) {
            sum = fma(inputs[tap], vectors[weight + tap], sum);
        }
        put(at, sum / (1.0 + exp(-sum)));
    }
    if row.proposed == 0u {
        keep(tail);
    }
}
