"""The functions of libpelton_embed (include/pelton_embed.h) as Python objects."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

VERSION = 1
READ_BYTES = 64 << 10


class PeltonError(Exception):
    """What went wrong. `status` is that of HTTP, 0 where no request had begun."""

    def __init__(self, message: str, status: int = 0, kind: str | None = None):
        super().__init__(message)
        self.status = status
        self.kind = kind


def find_library() -> str:
    """The shared library: PELTON_EMBED_LIBRARY, or the one in this package."""
    named = os.environ.get("PELTON_EMBED_LIBRARY")
    if named:
        return named
    name = {"darwin": "libpelton_embed.dylib", "win32": "pelton_embed.dll"}.get(sys.platform, "libpelton_embed.so")
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise PeltonError(
            f"{path} is missing: this package was made without it; build it (cargo build --release -p embed) "
            "and name it in PELTON_EMBED_LIBRARY"
        )
    return str(path)


def find_program() -> str:
    """The program: PELTON_PROGRAM, or the one that was installed with this package, or on the PATH."""
    named = os.environ.get("PELTON_PROGRAM")
    if named:
        return named
    name = "pelton.exe" if sys.platform == "win32" else "pelton"
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    found = shutil.which(name)
    if found is None:
        raise PeltonError("the pelton program is not on the PATH: name it in PELTON_PROGRAM")
    return found


def _open_library() -> ctypes.CDLL:
    library = ctypes.CDLL(find_library())
    error = ctypes.POINTER(ctypes.c_void_p)
    for name, result, arguments in [
        ("pelton_embed_version", ctypes.c_uint32, []),
        ("pelton_engine_open", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, error]),
        ("pelton_engine_close", None, [ctypes.c_void_p]),
        (
            "pelton_engine_ask",
            ctypes.c_void_p,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, error],
        ),
        ("pelton_reply_status", ctypes.c_uint32, [ctypes.c_void_p]),
        ("pelton_reply_read", ctypes.c_ssize_t, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, error]),
        ("pelton_reply_close", None, [ctypes.c_void_p]),
        ("pelton_text_free", None, [ctypes.c_void_p]),
    ]:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    version = library.pelton_embed_version()
    if version != VERSION:
        raise PeltonError(f"{find_library()} speaks version {version}, this package version {VERSION}")
    return library


_library: ctypes.CDLL | None = None
_opening = threading.Lock()


def _lib() -> ctypes.CDLL:
    global _library
    with _opening:
        if _library is None:
            _library = _open_library()
        return _library


def _take(error: ctypes.c_void_p) -> str:
    """The text of an error, which is freed."""
    if not error.value:
        return "no reason was given"
    text = ctypes.string_at(error.value).decode()
    _lib().pelton_text_free(error)
    return text


class Reply:
    """A reply whose bytes come as they are made. Closed before its end, it ends the work for it."""

    def __init__(self, engine: Engine, pointer: int):
        self._engine = engine
        self._pointer: int | None = pointer
        self._reading = threading.Lock()
        self.status: int = _lib().pelton_reply_status(pointer)

    def __iter__(self) -> Iterator[bytes]:
        room = ctypes.create_string_buffer(READ_BYTES)
        while True:
            with self._reading:
                if self._pointer is None:
                    return
                error = ctypes.c_void_p()
                count = _lib().pelton_reply_read(self._pointer, room, READ_BYTES, ctypes.byref(error))
            if count < 0:
                raise PeltonError(_take(error), self.status)
            if count == 0:
                return
            yield room.raw[:count]

    def read(self) -> bytes:
        """The whole body."""
        try:
            return b"".join(self)
        finally:
            self.close()

    def json(self) -> Any:
        """The whole body as JSON; raises `PeltonError` where it says what was wrong."""
        body = json.loads(self.read() or b"null")
        if self.status >= 400:
            raise _refused(body, self.status)
        return body

    def events(self) -> Iterator[Any]:
        """The JSON of each server-sent event, as it comes."""
        if self.status >= 400:
            self.json()
        rest = b""
        try:
            for part in self:
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    event = json.loads(data)
                    if isinstance(event, dict) and "error" in event:
                        raise _refused(event, self.status)
                    yield event
        finally:
            self.close()

    def close(self) -> None:
        with self._reading:
            pointer, self._pointer = self._pointer, None
            if pointer is not None:
                _lib().pelton_reply_close(pointer)
                self._engine._replies.discard(self)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refused(body: Any, status: int) -> PeltonError:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return PeltonError(str(error.get("message")), status, error.get("type"))
    return PeltonError(str(error or body), status)


class Engine:
    """A model in this process.

    `allocator` is the path of a shared library that gives the memory of the model
    (docs/allocator.md). `settings` are keys of the configuration, as in
    `{"limits.kv_cache_mb": 512, "sharing.enabled": False}`; they come before the environment and
    the configuration file. May be used by several threads at once.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str | None = None,
        threads: int | None = None,
        context_tokens: int | None = None,
        allocator: str | os.PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self._pointer: int | None = None
        self._replies: set[Reply] = set()
        named = {
            "device": device,
            "threads": threads,
            "model.context_tokens": context_tokens,
            "heap_pool.allocator": None if allocator is None else os.fspath(allocator),
        }
        keys = {**(settings or {}), **{key: value for key, value in named.items() if value is not None}}
        library, error = _lib(), ctypes.c_void_p()
        self._pointer = library.pelton_engine_open(
            None if model is None else model.encode(),
            json.dumps(keys).encode(),
            os.fsencode(find_program()),
            ctypes.byref(error),
        )
        if not self._pointer:
            raise PeltonError(_take(error))

    def ask(self, method: str, path: str, body: Any = None) -> Reply:
        """Asks any route of the server, as in `ask("POST", "/v1/messages", {...})`."""
        if self._pointer is None:
            raise PeltonError("the engine is closed")
        data = b"" if body is None else json.dumps(body).encode()
        error = ctypes.c_void_p()
        pointer = _lib().pelton_engine_ask(
            self._pointer, method.encode(), path.encode(), data, len(data), ctypes.byref(error)
        )
        if not pointer:
            raise PeltonError(_take(error))
        reply = Reply(self, pointer)
        self._replies.add(reply)
        return reply

    def chat(self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **fields: Any) -> Any:
        """The text of an answer, or with `stream=True` its pieces as they come.

        `fields` are those of OpenAI's chat completions. `chat_completion` gives the whole reply.
        """
        if not stream:
            return self.chat_completion(messages, **fields)["choices"][0]["message"]["content"]
        events = self.chat_events(messages, **fields)
        return (piece for event in events for piece in _pieces(event))

    def chat_completion(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        """OpenAI's chat completion object."""
        body = {"messages": list(messages), **fields}
        return self.ask("POST", "/v1/chat/completions", body).json()

    def chat_events(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Iterator[dict[str, Any]]:
        """OpenAI's chunks, as they come."""
        body = {"messages": list(messages), **fields, "stream": True}
        return self.ask("POST", "/v1/chat/completions", body).events()

    def complete(self, prompt: str | Sequence[int], **fields: Any) -> str:
        """What follows a prompt, as text."""
        reply = self.ask("POST", "/v1/completions", {"prompt": prompt, **fields}).json()
        return reply["choices"][0]["text"]

    def embed(self, texts: str | Sequence[str], **fields: Any) -> list[list[float]]:
        """A vector for each text."""
        reply = self.ask("POST", "/v1/embeddings", {"input": texts, **fields}).json()
        return [item["embedding"] for item in reply["data"]]

    def tokenize(self, text: str) -> list[int]:
        """The ids of a prompt, with what the model begins prompts with."""
        return self.ask("POST", "/tokenize", {"prompt": text}).json()["tokens"]

    def models(self) -> list[dict[str, Any]]:
        return self.ask("GET", "/v1/models").json()["data"]

    def close(self) -> None:
        """Ends what is being computed and unloads the model."""
        pointer, self._pointer = self._pointer, None
        for reply in list(self._replies):
            reply.close()
        if pointer is not None:
            _lib().pelton_engine_close(pointer)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _pieces(event: dict[str, Any]) -> Iterator[str]:
    for choice in event.get("choices", []):
        content = choice.get("delta", {}).get("content")
        if content:
            yield content
