"""Pelton in this process: `Engine` loads a model and answers without a server.

    from pelton import Engine

    with Engine("smollm2") as engine:
        for piece in engine.chat([{"role": "user", "content": "Hello"}], stream=True):
            print(piece, end="", flush=True)

Requests and replies are those of the OpenAI API; `Engine.ask` reaches every route of the server.
"""

from ._engine import Engine, PeltonError, Reply, find_library, find_program

__all__ = ["Engine", "PeltonError", "Reply", "find_library", "find_program"]
