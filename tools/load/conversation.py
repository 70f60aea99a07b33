"""What does a shared beginning save: in a conversation, and in time to the first token?

    python3 tools/load/conversation.py --pelton target/release/pelton

A conversation of ten turns computes its new turns only; a prompt that shares its first 2,000
tokens with an earlier one is answered many times sooner than one that shares nothing.
"""

import asyncio
import statistics

import served


def converse(server, turns, tokens):
    """Prompt tokens, and those of them that were not computed, of each turn."""
    messages, found = [], []
    for turn in range(turns):
        text = f"This is turn {turn}. Use these words: {served.words(turn, 20)}."
        messages.append({"role": "user", "content": text})
        reply = asyncio.run(served.ask(server.port, served.chat(messages, tokens)))
        served.check([reply])
        messages.append({"role": "assistant", "content": reply.text})
        cached = reply.usage["prompt_tokens_details"]["cached_tokens"]
        found.append((reply.usage["prompt_tokens"], cached))
    return found


def first_token(server, prefix, question):
    body = served.chat(f"{prefix} {question}", 2)
    reply = asyncio.run(served.ask(server.port, body))
    served.check([reply])
    return reply


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--prefix-words", type=int, default=1750)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with served.Served(arguments.pelton, arguments.model) as server:
        before = 0
        turns = converse(server, arguments.turns, arguments.tokens)
        for turn, (prompt, cached) in enumerate(turns):
            new = prompt - before
            computed = prompt - cached
            print(f"turn {turn}: {prompt} prompt tokens, {new} new, {computed} computed")
            # Whole blocks of 32 are kept, and the last token of a prompt is computed in any case.
            assert turn == 0 or computed <= new + 32, "old turns are not read again"
            before = prompt + arguments.tokens
        cold, warm, shared = [], [], 0
        for repeat in range(arguments.repeats):
            prefix = f"Story {repeat}: " + served.words(1000 + repeat, arguments.prefix_words)
            cold.append(first_token(server, prefix, "How does it begin?").first_token)
            reply = first_token(server, prefix, "How does it end?")
            warm.append(reply.first_token)
            shared = reply.usage["prompt_tokens_details"]["cached_tokens"]
    print(f"first token behind a beginning of {shared} tokens:")
    print(served.median_line("  cold", cold, "s"))
    print(served.median_line("  warm", warm, "s"))
    print(f"  ratio {statistics.median(cold) / statistics.median(warm):.1f}")


if __name__ == "__main__":
    main()
