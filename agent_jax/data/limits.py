"""A limit on the memory that reading a file takes: 512 MB more than its size, so that a small file cannot fill memory.

Readers whose result may be larger than the file call `check_unpacked` with the size in the file's header before they
unpack anything. AGENT_JAX_MAX_READ_MB=N replaces the 512 for all readers.
"""

from __future__ import annotations

import os

MAX_READ_VARIABLE = "AGENT_JAX_MAX_READ_MB"
_DEFAULT_MB = 512


def max_extra_bytes() -> int:
    """Bytes that a reader may use in addition to the size of the file.

    Raises:
        ValueError: AGENT_JAX_MAX_READ_MB is not a whole number of at least 1.
    """
    text = os.environ.get(MAX_READ_VARIABLE, "")
    if not text:
        return _DEFAULT_MB * 2**20
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 10**11):
        raise ValueError(f"{MAX_READ_VARIABLE}={text!r}: expected a whole number of megabytes, as 2048")
    return int(text) * 2**20


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Refuse data that take more memory than their size plus `max_extra_bytes`.

    Args:
        unpacked: bytes in memory, according to a header or a decoder.
        packed: bytes of the file, or of the encoded value in it.
        where: file, field or kind of value, for the message.

    Raises:
        ValueError: names both sizes, the limit and the variable that raises it.
    """
    if unpacked <= packed + 2**20:  # the smallest possible limit: no need to read the environment
        return
    bound = max_extra_bytes()
    if unpacked > packed + bound:
        needed = -(-(unpacked - packed) // 2**20)
        raise ValueError(f"{where}: {packed:,} bytes that unpack to {unpacked:,}, expected at most {bound // 2**20} MB "
                         f"more than their size; if you trust the data, set {MAX_READ_VARIABLE}={needed} in the "
                         "environment")
