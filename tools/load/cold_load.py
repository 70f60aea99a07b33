"""How fast is a model read that is not in the system's cache, next to what the disk gives at best?

    python3 tools/load/cold_load.py --pelton target/release/pelton --model /tmp/8b.gguf

In turn: a server is started with the file as the last reading left it, in the cache, and asked for
a token; then without it in the cache; then the file is read in order and thrown away, past the cache
and through it (in blocks of 8 MiB by two threads, as fast as such reads are here). Only the file is
dropped from the system's cache, so that nobody else's work is disturbed. With `--linger 20` the cold
server lives on for 20 seconds after its first token, and then a start as the next one would be is
measured, too. With `--repack-cache FILE` the weights are kept there as the device laid them out, by
a start before the first round, and that file is the one that is read and dropped. Linux only.
"""

import concurrent.futures
import mmap
import os
import statistics
import time

import first_token
import served

BLOCK_BYTES = 8 << 20


def forget(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path, readers, flags=0):
    """Gigabytes a second."""
    size = os.path.getsize(path)
    file = os.open(path, os.O_RDONLY | flags)

    def blocks(first):
        # Begins at a page, as reads past the cache want.
        buffer = mmap.mmap(-1, BLOCK_BYTES)
        for start in range(first * BLOCK_BYTES, size, readers * BLOCK_BYTES):
            os.preadv(file, [buffer], start)

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        list(pool.map(blocks, range(readers)))
    seconds = time.perf_counter() - started
    os.close(file)
    return size / seconds / 1e9


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", default="", help="further flags of the server")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds; then one more start")
    parser.add_argument("--repack-cache", help="keep repacked weights in this file and read those")
    arguments = parser.parse_args()
    flags, file = arguments.flags.split(), arguments.model
    if arguments.repack_cache:
        file = arguments.repack_cache
        flags.append(f"--repack-cache={file}")
        first_token.start(arguments, flags)
        os.sync()
    gigabytes = os.path.getsize(file) / 1e9
    past, through, cold, cold_first, next_first, warm_first = [], [], [], [], [], []
    for _ in range(arguments.rounds):
        warm_first.append(first_token.start(arguments, flags)[1])
        # At once: on a virtual machine memory that nobody has used for some seconds may be the
        # host's again, and then touching it takes longer than reading the disk.
        forget(file)
        opened, first = first_token.start(arguments, flags, arguments.linger)
        cold.append(gigabytes / opened)
        cold_first.append(first)
        if arguments.linger:
            next_first.append(first_token.start(arguments, flags)[1])
        forget(file)
        past.append(read(file, 2, os.O_DIRECT))
        through.append(read(file, 2))
    print(f"{gigabytes:.2f} GB")
    print(served.median_line("read in order, past the cache", past, "GB/s"))
    print(served.median_line("read in order, through the cache", through, "GB/s"))
    print(served.median_line("from the start of the program to an open port", cold, "GB/s"))
    print(served.median_line("first token, file not in the cache", cold_first, "s"))
    if arguments.linger:
        print(served.median_line("first token, the start after it", next_first, "s"))
    print(served.median_line("first token, file in the cache", warm_first, "s"))
    for name, rates in [("past", past), ("through", through)]:
        share = statistics.median(cold) / statistics.median(rates)
        print(f"share of the disk's rate {name} the cache: {share:.2f}")


if __name__ == "__main__":
    main()
