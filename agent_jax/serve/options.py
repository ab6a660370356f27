"""What an operator chooses about the server; each field is a flag of the same name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from agent_jax.client.connection import TOKEN_VARIABLE

_SHORTEST_TOKEN = 16  # characters; what a random one of 64 bits has in hexadecimal


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Where to listen, and the limits of what one robot may do to the others."""

    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0 for the network, and then with a token
    port: int = 8000
    max_batch: int = 16
    max_wait_ms: float = 2.0  # that the first robot of a batch waits for others: little beside any policy's step
    max_connections: int = 64
    max_message_bytes: int = 8 << 20  # three 720p cameras, uncompressed
    max_rate_hz: float = 0.0  # messages of one connection, on average over a second; 0: as many as it likes
    ping_s: float = 10.0  # a robot that does not answer a ping within the same time again is gone
    drain_s: float = 10.0  # that requests under way have to end in when the server is told to

    def __post_init__(self) -> None:
        expected = {
            "port": (0 <= self.port < 1 << 16, "0 (any free one) to 65535"),
            "max_batch": (self.max_batch >= 1, "at least 1"),
            "max_wait_ms": (0 <= self.max_wait_ms <= 1000, "0 to 1000"),
            "max_connections": (self.max_connections >= 1, "at least 1"),
            "max_message_bytes": (self.max_message_bytes >= 1024, "at least 1024"),
            "max_rate_hz": (0 <= self.max_rate_hz < float("inf"), "0 (no limit) or more"),
            "ping_s": (0 < self.ping_s < float("inf"), "more than 0"),
            "drain_s": (0 <= self.drain_s < float("inf"), "0 or more"),
        }
        for name, (holds, what) in expected.items():
            if not holds:
                raise ValueError(f"--{name}={getattr(self, name)}: expected {what}")


def read_token(path: str) -> str:
    """The secret that clients must know: the file's, or that of the environment variable; "": none is asked for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the secret is short, or has characters that a header cannot hold.
    """
    where, token = f"the environment variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
    if path:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"--token_file={file}: no such file; expected one that holds the token alone")
        where, token = f"--token_file={file}", file.read_text(encoding="utf-8").strip()
    elif not token:
        return ""
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{where}: found {len(token)} characters, expected at least {_SHORTEST_TOKEN} ASCII ones "
                         "without spaces; make one by `openssl rand -hex 16`")
    return token
