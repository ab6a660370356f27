"""Several processes as one run: they compare what they know, wait for each other, and end together.

    join (cluster.py) -> check_same (config, code, data) -> the run, under the watchdog (watchdog.py) -> its end

What is exchanged here is text, through the coordination service that `jax.distributed` starts in process 0. No device
takes part, so it works before the first computation, and from a thread while the devices are busy. In a run of one
process every function returns at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from etils import epath
from jax._src import distributed as _jax_distributed  # jax has no public way to exchange text between processes

from agent_jax.runtime.cluster import USER_ERROR, Cluster, check, connect, patience
from agent_jax.runtime.watchdog import KEYS, Watchdog

_SHOWN = 10  # fields that an error lists
_WAIT_MS = 10_000  # of one request; whoever waits asks again, and the watchdog ends what waits in vain

T = TypeVar("T")

_watchdog: Watchdog | None = None
_numbers = itertools.count()  # of exchanges: all processes make the same ones in the same order


def join(cluster: Cluster) -> None:
    """Connect this process with the others of the run, if there are any; before the first use of a device.

    From then on only process 0 prints: the others' standard output is dropped, their errors are not. A process that
    does not find the others in time ends with a message and the status 2.

    Raises:
        ValueError: flags that contradict each other, or an environment that cannot be read.
    """
    global _watchdog
    check(cluster)
    with patience(cluster):
        if not connect(cluster):
            return
        hosts = exchange(socket.gethostname())
    if len(hosts) > 1:
        _watchdog = Watchdog(_client(), index(), hosts, heartbeat_timeout=cluster.heartbeat_timeout,
                             stall_timeout=cluster.stall_timeout)
        _watchdog.start()
    if not leads():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process


def count() -> int:
    """How many processes the run has; unlike `jax.process_count()`, starts no device."""
    return _jax_distributed.global_state.num_processes if connected() else 1


def index() -> int:
    """The number of this process."""
    return _jax_distributed.global_state.process_id if connected() else 0


def leads() -> bool:
    """Whether this is process 0, which alone writes logs and pictures, and acts."""
    return index() == 0


def connected() -> bool:
    """Whether this process has joined others, or a cluster of one."""
    return jax.distributed.is_initialized()


def exchange(text: str) -> list[str]:
    """The texts of all processes, by their number. All call it together: nobody returns before all came."""
    if not connected():
        return [text]
    place = f"{KEYS}/exchange/{next(_numbers)}"
    client = _client()
    client.key_value_set(f"{place}/{index()}", json.dumps(text))
    with _watchdog.waiting() if _watchdog else contextlib.nullcontext():
        return [json.loads(_wait_for(f"{place}/{process}")) for process in range(count())]


def check_same(facts: Mapping[str, Any], advice: str) -> None:
    """Refuse to go on where the processes do not agree. All of them call it together.

    Args:
        facts: JSON values by name.
        advice: what to do about a difference.

    Raises:
        ValueError: on every process, the same message: what differs, and who has which value.
    """
    texts = exchange(json.dumps(facts, sort_keys=True))
    if len(set(texts)) == 1:
        return
    found = [json.loads(text) for text in texts]
    lines = []
    for name in sorted(set().union(*found)):
        holders: dict[str, list[int]] = {}
        for process, entry in enumerate(found):
            holders.setdefault(json.dumps(entry[name]) if name in entry else "nothing", []).append(process)
        if len(holders) > 1:
            lines.append(f"  {name}: " + "; ".join(f"{value} on {_processes(who)}" for value, who in holders.items()))
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    raise ValueError("\n".join([f"the processes of this run differ; {advice}:", *lines[:_SHOWN], *more]))


def all_true(value: bool) -> bool:
    """Whether it is true on every process. All of them call it together."""
    return all(text == "yes" for text in exchange("yes" if value else "no"))


def by_leader(work: Callable[[], T]) -> T | None:
    """Process 0 does the work and returns its result; the others wait, and return None."""
    result = work() if leads() else None
    exchange("")
    return result


def leader_first(work: Callable[[], T]) -> T:
    """Process 0 does the work, then the others, who find what it made where they share its storage."""
    if leads():
        result = work()
        exchange("")
        return result
    exchange("")
    return work()


def compiled_together(function: Any) -> Callable[..., Any]:
    """A jitted function, always called with the same shapes by all processes together.

    In a run of several none of them executes it before all have compiled it: who meets the others only half a minute
    later is taken for lost by the collectives of CPU devices (gloo), which have no setting for that.
    """
    if count() == 1:
        return function
    programs: list[Any] = []

    def call(*arguments: Any) -> Any:
        if not programs:
            programs.append(function.lower(*arguments).compile())
            exchange("")
        return programs[0](*arguments)

    return call


def check_shared(directory: Path | epath.Path) -> None:
    """Refuse a directory that is not the same one for all processes; makes it. All of them call it together.

    Raises:
        ValueError: some process does not see what process 0 writes there.
    """
    if count() == 1:
        return
    name = f".hosts-{uuid.uuid4().hex}"
    if leads():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("")
    sees = (directory / exchange(name)[0]).exists()
    try:
        check_same({f"{directory} is that of process 0": sees}, "name storage that all hosts share by --workdir")
    finally:
        if leads():
            (directory / name).unlink()


def progress(place: str) -> None:
    """Tell the watchdog that this process goes on, and where it is."""
    if _watchdog:
        _watchdog.progress(place)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """What happens inside ends on all processes, or on none: an error of one ends the others too."""
    if _watchdog is None:
        yield
        return
    watchdog = _watchdog
    try:
        yield
        exchange("")  # process 0 still acts and writes the report, and the others would miss its service
        watchdog.stop()
    except SystemExit as error:
        _exit(error.code if isinstance(error.code, int) else 1)
    except BaseException as error:  # noqa: BLE001 - all of them end the process
        if isinstance(error, jax.errors.JaxRuntimeError):
            watchdog.let_it_find_out()  # a computation fails when another process has died
        watchdog.tell(f"ended by {type(error).__name__}: {_first_line(error)}; its own log says more", 1)
        traceback.print_exception(error)
        _exit(1)


def tell(message: str, code: int = USER_ERROR) -> None:
    """Before this process ends by an error: have the others end too, with the same message and status."""
    if _watchdog:
        _watchdog.tell(message, code)


def _processes(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {shown}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _client() -> Any:
    return _jax_distributed.global_state.client


def _wait_for(key: str) -> str:
    while True:
        try:
            return _client().blocking_key_value_get(key, _WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _exit(code: int) -> None:
    """End at once: on its usual way out, jax waits for processes that may be dead."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
