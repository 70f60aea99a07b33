"""`python -m pelton` is the program."""

import os
import sys

from ._engine import find_program

if __name__ == "__main__":
    program = find_program()
    if sys.platform == "win32":
        import subprocess

        raise SystemExit(subprocess.call([program, *sys.argv[1:]]))
    os.execv(program, [program, *sys.argv[1:]])
