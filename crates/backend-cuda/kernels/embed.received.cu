// embed.received: what embed.cu does besides looking rows up, for layers whose rows come from
// another device: ids of tokens, and cosines and sines of their positions. A block a token.

struct ReceivedArguments {
    const StepHeader* header;
    const u32* sources;  // bit 31: the rest is a slot
    const u32* slots_last;
    u32* tokens;
    const StepRow* rows;
    const u32* token_rows;
    EmbedRotary rotary[ROTARIES_MAX];
    u32 vocabulary;
    u32 rotaries;
};

extern "C" __global__ void __launch_bounds__(256)
    embed_received(const __grid_constant__ ReceivedArguments arguments) {
    let_next_start();
    wait_for_previous();
    const u32 index = blockIdx.x;
    if (index >= arguments.header->tokens) return;
    const u32 source = arguments.sources[index];
    const u32 token = source >> 31 ? arguments.slots_last[source & 0x7fffffff] : source;
    if (threadIdx.x == 0) arguments.tokens[index] = token < arguments.vocabulary ? token : 0;
    const StepRow row = arguments.rows[arguments.token_rows[index]];
    const u32 position = row.start + (index - row.token_first);
    write_turns(arguments.rotary, arguments.rotaries, index, position);
}
