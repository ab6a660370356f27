"""How much memory a file may take when it is read: its size and 512 MB more, so that a small file cannot fill memory.

Every reader whose result may be larger than its file calls `check_unpacked` with the size that the file's header
states, before it unpacks anything. AGENT_JAX_MAX_READ_MB=N raises (or lowers) the 512 for all readers.
"""

from __future__ import annotations

import os

MAX_READ_VARIABLE = "AGENT_JAX_MAX_READ_MB"
_DEFAULT_MB = 512


def max_extra_bytes() -> int:
    """Bytes that a reader may take beyond the size of what it reads.

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
    """Refuse data that take more memory than their size and `max_extra_bytes`.

    Args:
        unpacked: bytes of memory that they take, as a header states or a decoder has counted.
        packed: bytes of the file, or of the encoded value within it.
        where: file, field or kind of value, with which the message begins.

    Raises:
        ValueError: it is more; names both sizes, the bound and the variable that raises it.
    """
    if unpacked <= packed + 2**20:  # the least bound that can be set: small values cost no look at the environment
        return
    bound = max_extra_bytes()
    if unpacked > packed + bound:
        needed = -(-(unpacked - packed) // 2**20)
        raise ValueError(f"{where}: {packed:,} bytes that unpack to {unpacked:,}, expected at most {bound // 2**20} MB "
                         f"more than their size; if the data are sound, set {MAX_READ_VARIABLE}={needed} in the "
                         "environment")
