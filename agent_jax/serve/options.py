"""Options of the server; each field is a flag of the same name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from agent_jax.client.connection import TOKEN_VARIABLE

_SHORTEST_TOKEN = 16  # characters: 64 random bits in hexadecimal


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Address, and limits that protect the other connections."""

    host: str = "127.0.0.1"  # only this machine; 0.0.0.0 for the network, with a token
    port: int = 8000
    max_batch: int = 16
    max_wait_ms: float = 2.0  # time the first request of a batch waits: short compared with any policy's step
    max_connections: int = 64
    max_message_bytes: int = 8 << 20  # three 720p cameras, uncompressed
    max_rate_hz: float = 0.0  # messages a second of one connection, on average; 0: no limit
    ping_s: float = 10.0  # between pings, and until a connection without an answer is closed
    drain_s: float = 10.0  # to finish the current requests at the end
    surprise: int = 0  # masks of the surprise that a client may ask for with an action; 0: none, and no time to compile

    def __post_init__(self) -> None:
        expected = {
            "port": (0 <= self.port < 1 << 16, "0 (any free one) to 65535"),
            "max_batch": (self.max_batch >= 1, "at least 1"),
            "max_wait_ms": (0 <= self.max_wait_ms <= 1000, "0 to 1000"),
            "max_connections": (self.max_connections >= 1, "at least 1"),
            "max_message_bytes": (self.max_message_bytes >= 1024, "at least 1024"),
            "max_rate_hz": (0 <= self.max_rate_hz < float("inf"), "0 (no limit) or more"),
            "ping_s": (0 < self.ping_s < float("inf"), "more than 0"),
            "surprise": (self.surprise >= 0, "0 (none) or more"),
            "drain_s": (0 <= self.drain_s < float("inf"), "0 or more"),
        }
        for name, (holds, what) in expected.items():
            if not holds:
                raise ValueError(f"--{name}={getattr(self, name)}: expected {what}")


def read_token(path: str) -> str:
    """The clients' secret from the file or the environment variable; "": clients need none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the secret is too short, or has characters that are not allowed in a header.
    """
    where, token = f"the environment variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
    if path:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"--token_file={file}: no such file; expected a file with only the token")
        where, token = f"--token_file={file}", file.read_text(encoding="utf-8").strip()
    elif not token:
        return ""
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{where}: found {len(token)} characters, expected at least {_SHORTEST_TOKEN} ASCII ones "
                         "without spaces; make one with `openssl rand -hex 16`")
    return token
