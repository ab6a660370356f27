"""Processes that meet, compare and end together: each test starts real ones, with jax alone in them."""

from __future__ import annotations

import signal
import socket
import textwrap
from pathlib import Path

import pytest
from processes import codes, free_port, script_lines, started, wait_until, without_flags

from agent_jax.runtime import distributed
from agent_jax.runtime.cluster import Cluster, connect

HOST = r"process {} of {} \(\S+\)"


def test_a_run_of_one_process_waits_for_nobody(tmp_path: Path):
    body = """
        assert not distributed.connected()
        assert (distributed.index(), distributed.count(), distributed.leads()) == (0, 1, True)
        assert distributed.exchange("text") == ["text"]
        assert distributed.by_leader(lambda: 3) == 3
        assert not distributed.all_true(False)
        distributed.check_same({"a": 1}, "")
        distributed.progress("anywhere")
    """
    with started(without_flags(script_lines(body, 1)), tmp_path) as processes:
        assert codes(processes) == [0], processes[0].complained


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_that_another_program_has_is_refused_by_process_0_before_jax_takes_it(host: str):
    with socket.create_server((host, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ValueError, match=rf"--coordinator=127.0.0.1:{port}: process 0 cannot listen on port {port} "
                                             rf"of 127.0.0.1 .*Address already in use.* 127.0.0.1:{port + 1}"):
            connect(Cluster(f"127.0.0.1:{port}", 2, 0))
    assert not distributed.connected()


@pytest.mark.parametrize(("cluster", "expected"), [
    (Cluster(processes=2), "--processes given without --coordinator, --process; expected all three"),
    (Cluster("here", 2, 0), "--coordinator=here: expected HOST:PORT"),
    (Cluster("here:http", 2, 0), "--coordinator=here:http: expected HOST:PORT"),
    (Cluster("here:80", 2, 2), "--process=2: expected 0 to 1, since --processes=2"),
    (Cluster(join_timeout=0), "--join_timeout=0: expected at least 1 second"),
])
def test_flags_that_contradict_each_other_are_refused(cluster: Cluster, expected: str):
    with pytest.raises(ValueError, match=expected):
        distributed.join(cluster)


def test_processes_exchange_texts_take_disjoint_rows_and_only_the_first_one_prints(tmp_path: Path):
    body = """
        from agent_jax.config import MeshConfig
        from agent_jax.runtime.sharding import make_mesh, rows_here
        print("hello from", me, distributed.exchange(f"text {me}"))
        shapes = [MeshConfig(4, 1, 1), MeshConfig(1, 2, 2), MeshConfig(1, 1, 4)]
        parts = distributed.exchange(str([rows_here(make_mesh(shape)) for shape in shapes]))
        print("parts", parts)
        print(distributed.by_leader(lambda: f"led by {me}"), distributed.all_true(me == 0))
        distributed.check_same({"same": 1}, "no advice")
    """
    with started(script_lines(body, 2), tmp_path) as processes:
        assert codes(processes) == [0, 0]
    said = processes[0].said
    assert "hello from 0 ['text 0', 'text 1']" in said
    assert "parts ['[(0, 2), (0, 2), (0, 1)]', '[(1, 2), (1, 2), (0, 1)]']" in said
    assert "led by 0 False" in said
    assert "hello" not in processes[1].said
    assert [process.complained for process in processes] == ["", ""]


@pytest.mark.parametrize("engine", ["slurm", "open mpi"])
def test_processes_find_each_other_by_what_the_engine_says_in_the_environment(tmp_path: Path, engine: str):
    job = free_port() % 4096  # decides about the port
    variables = [
        {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": number,
         "SLURM_LOCALID": number} if engine == "slurm" else
        {"OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
         "OMPI_COMM_WORLD_RANK": number, "OMPI_COMM_WORLD_LOCAL_RANK": number} for number in "01"]
    lines = without_flags(script_lines("print(distributed.exchange(f'text {me}'), jax.device_count())", 2))
    with started(lines, tmp_path, variables) as processes:
        assert codes(processes) == [0, 0], [process.complained for process in processes]
    assert "['text 0', 'text 1'] 4" in processes[0].said


def test_processes_that_differ_are_told_in_what_on_every_one_of_them(tmp_path: Path):
    body = """
        try:
            distributed.check_same({"config.seed": min(me, 1), "jax": "1", **({"new": 2} if me else {})}, "do this")
        except ValueError as error:
            distributed.tell(str(error))
            print(error, file=sys.stderr)
            sys.exit(2)
    """
    with started(script_lines(body, 3), tmp_path) as processes:
        assert codes(processes) == [2, 2, 2]
    for process in processes:
        message = process.complained
        assert message.count("the processes of this run differ; do this:") == 1
        assert "  config.seed: 0 on process 0; 1 on processes 1, 2\n  new: nothing on process 0; 2 on" in message


def test_what_the_processes_do_not_share_is_refused(tmp_path: Path):
    body = """
        from etils import epath
        from agent_jax.config import MeshConfig
        from agent_jax.runtime.sharding import make_mesh, rows_here
        jax.config.update("jax_num_cpu_devices", 3)
        try:
            rows_here(make_mesh(MeshConfig(data=3, tensor=2)))  # process 0 has row 0 and half of row 1
        except ValueError as error:
            print(error, file=sys.stderr)
        distributed.check_shared(epath.Path("shared"))
        os.makedirs(str(me), exist_ok=True)
        os.chdir(str(me))
        try:
            distributed.check_shared(epath.Path("run"))
        except ValueError as error:
            print(error, file=sys.stderr)
    """
    with started(script_lines(f"os.chdir({str(tmp_path)!r})\n" + textwrap.dedent(body), 2), tmp_path) as processes:
        assert codes(processes) == [0, 0], [process.complained for process in processes]
    for process in processes:
        assert "over 2 processes: the rows of a batch cannot be shared out among them" in process.complained
        assert "name storage that all hosts share by --workdir:\n  run is that of process 0: true on process 0; false" \
            in process.complained
    assert list((tmp_path / "shared").iterdir()) == list((tmp_path / "0" / "run").iterdir()) == []


def test_an_error_of_one_process_ends_all_with_its_message_and_code(tmp_path: Path):
    body = """
        if me == 1:
            distributed.tell("no such data set")
            sys.exit(2)
        time.sleep(100)
    """
    with started(script_lines(body, 3), tmp_path) as processes:
        assert codes(processes) == [2, 2, 2]
    for number in (0, 2):
        assert processes[number].complained.splitlines()[0].endswith("): no such data set")
        assert processes[number].complained.startswith("agent_jax: process 1 of 3 (")
        assert processes[number].complained.count("\n") == 1


def test_a_traceback_of_the_first_process_is_told_to_the_others_before_it_ends(tmp_path: Path):
    body = """
        if me == 0:
            raise KeyError("lost")
        time.sleep(100)
    """
    with started(script_lines(body, 2), tmp_path) as processes:
        assert codes(processes) == [1, 1]
    assert "Traceback" in processes[0].complained
    assert "ended by KeyError: 'lost'; its own log says more" in processes[1].complained
    assert processes[1].complained.count("\n") == 1


def test_a_process_that_is_alone_ends_with_one_message_after_the_time_to_join(tmp_path: Path):
    first = script_lines("pass", 2, join_timeout=4)[0]
    lost = script_lines("pass", 2, join_timeout=4)[1]
    with started([first, lost], tmp_path) as processes:
        assert codes(processes) == [75, 75]
    assert "process 0 of 2 waited 4 s for the others: not all of them have come to 127.0.0.1:" in \
        processes[0].complained
    assert "process 1 of 2 waited 4 s for the others: nothing answers at 127.0.0.1:" in processes[1].complained
    for process in processes:
        assert process.complained.count("agent_jax: ") == 1
        assert "Start the same command on every host" in process.complained


def stands(process) -> bool:
    return "ready" in process.complained


def test_a_killed_process_is_noticed_by_the_others_which_end_with_one_message(tmp_path: Path):
    body = """
        print("ready", file=sys.stderr, flush=True)
        time.sleep(100)
    """
    with started(script_lines(body, 3, heartbeat_timeout=3), tmp_path) as processes:
        wait_until(lambda: all(map(stands, processes)), "all to be ready", processes)
        processes[1].running.kill()
        assert codes(processes) == [75, -signal.SIGKILL, 75]
    for number in (0, 2):
        message = processes[number].complained.removeprefix("ready\n")
        assert message.startswith("agent_jax: process 1 of 3 (")
        assert "has not been heard of for" in message
        assert message.count("\n") == 1


def test_the_death_of_the_first_process_ends_the_others_with_a_last_line_that_says_so(tmp_path: Path):
    body = """
        print("ready", file=sys.stderr, flush=True)
        time.sleep(100)
    """
    with started(script_lines(body, 3), tmp_path) as processes:
        wait_until(lambda: all(map(stands, processes)), "all to be ready", processes)
        processes[0].running.kill()
        assert codes(processes) == [-signal.SIGKILL, 75, 75]
    for number in (1, 2):
        last = processes[number].complained.splitlines()[-1]
        assert last.startswith(f"agent_jax: process {number} of 3 (")
        assert "since process 0 of 3 (" in last
        assert "Start the same command on all hosts again" in last


def test_a_process_that_stands_still_ends_the_run_and_is_named(tmp_path: Path):
    body = """
        for step in range(10_000):
            distributed.progress(f"step {step}")
            if me == 1 and step == 3:
                time.sleep(100)
            distributed.exchange("")
    """
    with started(script_lines(body, 2, stall_timeout=3), tmp_path) as processes:
        assert codes(processes) == [75, 75]
    for process in processes:
        assert process.complained.startswith("agent_jax: no progress for 3 s: process 1 of 2 (")
        assert "is at step 3, as all are" in process.complained
        assert process.complained.count("\n") == 1
