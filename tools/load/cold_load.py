"""How fast is a model read that is not in the system's cache, next to what the disk gives at best?

    python3 tools/load/cold_load.py --pelton target/release/pelton --model /tmp/8b.gguf

In turn: a server is started with the file as the last reading left it, in the cache, and asked for
a token; then without it in the cache; then the file is read in order and thrown away (in blocks of
8 MiB by two threads, as fast as plain reads are here). Only the file is dropped from the system's
cache, so that nobody else's work is disturbed. With `--repack-cache FILE` the weights
are kept there as the device laid them out, by a start before the first round, and that file is the
one that is read and dropped. Linux only.
"""

import concurrent.futures
import os
import statistics
import time

import first_token
import served

BLOCK_BYTES = 8 << 20


def forget(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path, readers):
    """Bytes a second."""
    size = os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:

        def blocks(first):
            buffer = memoryview(bytearray(BLOCK_BYTES))
            for start in range(first * BLOCK_BYTES, size, readers * BLOCK_BYTES):
                os.preadv(file.fileno(), [buffer], start)

        started = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(readers) as pool:
            list(pool.map(blocks, range(readers)))
        return size / (time.perf_counter() - started)


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", default="", help="further flags of the server")
    parser.add_argument("--repack-cache", help="keep repacked weights in this file and read those")
    arguments = parser.parse_args()
    flags, file = arguments.flags.split(), arguments.model
    if arguments.repack_cache:
        file = arguments.repack_cache
        flags.append(f"--repack-cache={file}")
        first_token.start(arguments, flags)
        os.sync()
    gigabytes = os.path.getsize(file) / 1e9
    disk, cold, cold_first, warm_first = [], [], [], []
    for _ in range(arguments.rounds):
        warm_first.append(first_token.start(arguments, flags)[1])
        # At once: on a virtual machine memory that nobody has used for some seconds may be the
        # host's again, and then touching it takes longer than reading the disk.
        forget(file)
        opened, first = first_token.start(arguments, flags)
        cold.append(gigabytes / opened)
        cold_first.append(first)
        forget(file)
        disk.append(max(read(file, 2), 1) / 1e9)
    print(f"{gigabytes:.2f} GB")
    print(served.median_line("read in order and thrown away", disk, "GB/s"))
    print(served.median_line("from the start of the program to an open port", cold, "GB/s"))
    print(served.median_line("first token, file not in the cache", cold_first, "s"))
    print(served.median_line("first token, file in the cache", warm_first, "s"))
    print(f"share of the disk's rate: {statistics.median(cold) / statistics.median(disk):.2f}")


if __name__ == "__main__":
    main()
