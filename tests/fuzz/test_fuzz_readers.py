"""Damaged files end every reader in its one kind of error, in bounded memory and time, with no code run.

    pytest -m fuzz                                    3,000 inputs a reader; CI takes the first 1,000
    AGENT_JAX_FUZZ_INPUTS=100000 pytest -m fuzz       more of them; the first 3,000 are the same

An input is made from the reader's name and its number alone, so a failure is found again by what it prints.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mutations import damaged
from readers import READERS, Reader

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

INPUTS = int(os.environ.get("AGENT_JAX_FUZZ_INPUTS", "3000"))
SECONDS = 20  # of one input; an honest one takes milliseconds
EXTRA_BYTES = 1536 * 2**20  # above what the process has at first: the readers' bound of 512 MiB, and what libraries add
_RUNS_CODE = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork",
                        "socket.connect"})
_watching = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in _RUNS_CODE:
        raise AssertionError(f"a reader ran {event}{arguments}")


sys.addaudithook(_audit)  # for as long as the process lives


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Little more memory than the process has now; an alarm is an error."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"not read within {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    alarm = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_BYTES, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(reader: Reader, folder: Path, names: tuple[str, ...]) -> str:
    """"" where the files were read or refused as they should be, or what happened instead."""
    global _watching
    _watching = True
    signal.alarm(SECONDS)
    try:
        reader.read(folder)
    except TimeoutError as error:
        return f"TimeoutError: {error}"
    except reader.errors as error:
        if isinstance(error, (UnicodeError, RecursionError)) or not reader.named(str(error), names):
            return f"{type(error).__name__} that names none of {names}: {str(error)[:200]}"
    except BaseException as error:  # noqa: BLE001  whatever else it is, it is what is looked for
        ours = [entry for entry in traceback.extract_tb(error.__traceback__) if "/agent_jax/" in entry.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        return f"{type(error).__name__} at {place}: {str(error)[:120]}"
    finally:
        signal.alarm(0)
        _watching = False
    return ""


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_in_words(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.make(tmp_path)
    files = {file: (tmp_path / file).read_bytes() for file in reader.files(tmp_path)}
    assert outcome(reader, tmp_path, ()) == "", "what is not damaged is read"
    failures: dict[str, str] = {}
    counts: Counter[str] = Counter()
    with bounds():
        for number in range(INPUTS):
            random = np.random.default_rng([zlib.crc32(name.encode()), number])
            file = list(files)[random.integers(len(files))]
            (tmp_path / file).write_bytes(damaged(files[file], file, random))
            found = outcome(reader, tmp_path, (file, Path(file).name, tmp_path.name))
            (tmp_path / file).write_bytes(files[file])
            if found:
                kind = found.partition(": ")[0]
                counts[kind] += 1
                failures.setdefault(kind, f"input {number} ({file}): {found}")
    assert not failures, "\n" + "\n".join(f"{counts[kind]} x {text}" for kind, text in failures.items())
