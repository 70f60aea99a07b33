"""Do many identical concurrent streams cost one prefill and one decode, with identical bytes?

    python3 tools/load/identical.py --pelton target/release/pelton --streams 100
"""

import asyncio

import served


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    prompt = "Tell a story of these words: " + served.words(1, 100)
    body = served.chat(prompt, arguments.tokens)
    with served.Served(arguments.pelton, arguments.model, "--speculation", "off") as server:
        computed = server.metric("pelton_computed_tokens_total")
        load = served.closed_loop(server.port, [body] * arguments.streams, arguments.streams)
        replies, seconds = asyncio.run(load)
        served.check(replies)
        computed = server.metric("pelton_computed_tokens_total") - computed
        joins = server.metric("pelton_sharing_joins_total")
        hits = server.metric("pelton_sharing_hits_total")
    texts = {reply.text for reply in replies}
    assert len(texts) == 1, f"{len(texts)} different texts"
    prompt_tokens = replies[0].usage["prompt_tokens"]
    alone = prompt_tokens + arguments.tokens - 1
    rate = served.tokens_of(replies) / seconds
    print(f"{arguments.streams} streams, one text, {rate:.0f} tok/s told to all together")
    print(f"{joins:.0f} read along, {hits:.0f} were told what was remembered")
    print(f"{computed:.0f} positions computed; one request alone computes {alone}")
    assert computed == alone, "one prefill, one decode"


if __name__ == "__main__":
    main()
