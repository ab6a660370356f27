"""Where the processes of a run meet: by flags, or by what a TPU pod, Slurm, Open MPI or Kubernetes says.

jax knows the engines. What is ours is an end to the waiting that a user can read: jax's own is an abort.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Iterator

import jax
from jax._src import distributed as _jax_distributed  # to tell, while `initialize` waits, for whom

from agent_jax.help_pages import help_page
from agent_jax.runtime.watchdog import INTERRUPTED

USER_ERROR = 2  # exit status of what the user must mend, as everywhere in this package


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the processes of a run meet."""

    coordinator: str = ""  # HOST:PORT of process 0; empty: by the environment (TPU pod, Slurm, Open MPI, Kubernetes)
    processes: int = 0  # 0: by the environment
    process: int = -1  # -1: by the environment
    join_timeout: float = 300.0  # seconds until all must have come
    heartbeat_timeout: float = 60.0  # seconds of silence after which a process counts as dead
    stall_timeout: float = 3600.0  # seconds without progress (a step, a compilation, an evaluation) that end the run


def check(cluster: Cluster) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ValueError: names them.
    """
    given = {"--coordinator": bool(cluster.coordinator), "--processes": cluster.processes > 0,
             "--process": cluster.process >= 0}
    if any(given.values()) and not all(given.values()) and cluster.processes != 1:
        raise ValueError(f"{', '.join(flag for flag, is_given in given.items() if is_given)} given without "
                         f"{', '.join(flag for flag, is_given in given.items() if not is_given)}; expected all three, "
                         "or none where a TPU pod, Slurm, Open MPI or Kubernetes says them")
    if cluster.coordinator:
        host, _, port = cluster.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator={cluster.coordinator}: expected HOST:PORT of process 0, such as "
                             "10.0.0.2:8476")
        if not 0 <= cluster.process < cluster.processes:
            raise ValueError(f"--process={cluster.process}: expected 0 to {cluster.processes - 1}, since "
                             f"--processes={cluster.processes}")
    for name in ("join_timeout", "heartbeat_timeout", "stall_timeout"):
        if getattr(cluster, name) < 1:
            raise ValueError(f"--{name}={getattr(cluster, name)}: expected at least 1 second")


def connect(cluster: Cluster) -> bool:
    """Connect this process to the others; False if it is to be alone.

    Raises:
        ValueError: the environment cannot be read, or the coordinator's port is in use.
    """
    if cluster.processes == 1 and not cluster.coordinator:
        return False  # whatever the environment says
    explicit = bool(cluster.coordinator)
    if explicit and cluster.process == 0:
        _check_port(cluster)
    try:
        # Its own time-outs come later than ours: it ends the process by an abort, with a stack trace for a message.
        jax.distributed.initialize(
            cluster.coordinator or None, cluster.processes or None, cluster.process if explicit else None,
            cluster_detection_method="deactivate" if explicit else None,
            initialization_timeout=int(cluster.join_timeout) + 60,
            heartbeat_timeout_seconds=int(cluster.heartbeat_timeout) + 180)
    except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
        if "coordinator_address should be defined" in str(error):
            return False  # no engine
        raise ValueError(f"the processes of this run could not be connected: {error}. Give --coordinator=HOST:PORT, "
                         "--processes=N and --process=I on each of them, or --processes=1 to run alone"
                         + help_page("large_runs/several_hosts.md", "How the processes connect")) from error
    return True


def _check_port(cluster: Cluster) -> None:
    """Refuse a port on which process 0 cannot listen: jaxlib would end it by a segmentation fault."""
    host, _, port = cluster.coordinator.rpartition(":")
    both = socket.has_dualstack_ipv6()  # jax listens on every address of the machine
    try:
        socket.create_server(("", int(port)), family=socket.AF_INET6 if both else socket.AF_INET,
                             dualstack_ipv6=both).close()
    except OSError as error:
        raise ValueError(f"--coordinator={cluster.coordinator}: process 0 cannot listen on port {port} of {host} "
                         f"(this host is {socket.gethostname()}): {error.strerror or error}. End the program that has "
                         "the port, or name another one, such as "
                         f"{host}:{int(port) + 1 if int(port) < 65535 else 8476}, on every process"
                         + help_page("large_runs/several_hosts.md", "How the processes connect")) from error


@contextlib.contextmanager
def patience(cluster: Cluster) -> Iterator[None]:
    """What happens inside must be over in `join_timeout`, or the process ends with a message."""
    timer = threading.Timer(cluster.join_timeout, _give_up, [cluster])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(cluster: Cluster) -> None:
    """End a process that has not found the others."""
    state = _jax_distributed.global_state
    address = state.coordinator_address or cluster.coordinator
    host, _, port = address.rpartition(":")
    who = f"process {state.process_id} of {state.num_processes}" if address else "this process"
    waited = f"{who} waited {cluster.join_timeout:.0f} s for the others"
    if not address:
        found = "the cluster's description could not be read"
    elif state.process_id == 0:
        found = f"not all of them have come to {address}, where this one listens"
    else:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                found = f"process 0 answers at {address}, but not all have come"
        except OSError as error:
            found = f"nothing answers at {address}, where process 0 should listen ({error})"
    print(f"agent_jax: {waited}: {found}. Start the same command on every host, with the same coordinator and number "
          "of processes and its own --process; see that the hosts reach that port; or raise --join_timeout"
          + help_page("large_runs/several_hosts.md", "How the processes connect"),
          file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # they may be late, as after a preemption; jax, on its way out, waits for them too
