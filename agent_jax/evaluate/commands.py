"""The subcommands of `python -m agent_jax.evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from agent_jax.config import ClosedLoopConfig, Config
from agent_jax.data.store.store import Store
from agent_jax.envs import EnvironmentModule, load, tasks_of
from agent_jax.envs.custom import same_environment, try_out
from agent_jax.envs.instructions import check_kinds
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.action_accuracy import format_errors
from agent_jax.evaluate.checkpoints import TrainedRun, data_paths
from agent_jax.evaluate.closed_loop import TRACED, at_a_time, baseline_names, check_domain, closed_loop, means
from agent_jax.evaluate.in_training import simulator_image_size
from agent_jax.evaluate.offline import evaluate_offline, format_scores
from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.replay_actions import collected_from, format_replayed, recorded_episodes, replay_actions
from agent_jax.evaluate.replay_frames import replay_frames
from agent_jax.evaluate.rerun_file import RerunFile
from agent_jax.evaluate.rollout_video import Format, check_format, default_format, write_recording
from agent_jax.evaluate.surprise import evaluate_surprise, format_surprise
from agent_jax.json_files import write_json
from agent_jax.runtime.extras import install
from agent_jax.runtime.host_memory import tune_heap
from agent_jax.runtime.processor import cores


def closed_loop_command(options: argparse.Namespace) -> int:
    """Act in a simulator; returns the exit status."""
    begun = time.perf_counter()
    with _Videos(options) if options.video or options.rerun else contextlib.nullcontext() as videos:
        return _closed_loop(options, begun, videos)


def _closed_loop(options: argparse.Namespace, begun: float, videos: _Videos | None) -> int:
    tune_heap()
    module = load(options.env)
    trained = TrainedRun.load(options.checkpoint)
    domain = trained.domain(options.domain)
    check_domain(domain, module)
    check_kinds(module, options.instruction)
    tasks = _tasks(options, module, trained.config, domain.name)
    image_size = options.image_size or simulator_image_size(trained.config, options.env, domain.name)
    for task in tasks:
        try_out(module, task, image_size)
    policy = trained.policy(options.domain, temperature=options.temperature, seed=options.seed,
                            history=options.history, flush_every=options.flush_every,
                            replan_every=options.replan_every)
    trained = dataclasses.replace(trained, loaded=None)  # frees the parameters; the policy has its own copy
    name = "greedy" if options.temperature == 0 else f"sampled-{options.temperature:g}"
    config = ClosedLoopConfig(environment=options.env, episodes={task: int(options.episodes) for task in tasks},
                              seed=options.seed, processes=options.processes)
    last = options.seed + options.episodes * options.repeats - 1
    _log(f"checkpoint: {trained.directory}, step {trained.step}; domain {policy.domain.name!r}\n"
         f"simulator: {module.version()}, {options.processes} process(es)\n"
         f"seeds: {options.seed} to {last} for each of {len(tasks)} task(s), "
         f"{', '.join((name, *(baseline_names(module) if options.baselines else ())))}")
    report = closed_loop(config, {name: policy}, domain=policy.domain, image_size=image_size, record=options.videos,
                         watch=videos.write if videos else None, baselines=options.baselines, per_episode=True,
                         traced=TRACED, concurrent=options.concurrent, repeats=options.repeats,
                         instructions=options.instruction, log=_log)
    _write(options, trained, {
        "environment": options.env, "simulator": module.version(), "domain": policy.domain.name,
        "seed": options.seed, "temperature": options.temperature, "history": options.history,
        "actions_per_image": policy.domain.actions_per_image, "replan_every": policy.replan_every,
        "concurrent": at_a_time(module, options.concurrent, options.processes),
        "seconds": round(time.perf_counter() - begun, 1), "tasks": report, "mean_of_tasks": means(report)})
    if videos and videos.error:
        raise videos.error
    return 0


def offline_command(options: argparse.Namespace) -> int:
    """Evaluate on recorded data; returns the exit status."""
    trained = TrainedRun.load(options.checkpoint)
    paths = data_paths(options.data, trained.domains)
    domains = [trained.domain(options.domain)] if options.domain else list(trained.domains.values())
    params, scores = trained.params(), []
    for domain in domains:
        policy = trained.policy(domain.name) if options.free_running and domain.layout != "label" else None
        scores.append(evaluate_offline(trained, params, domain, data=paths.get(domain.name, ""), split=options.split,
                                       rows_limit=options.rows, recordings_limit=options.recordings, policy=policy))
    _log(format_scores(scores))
    for metric, package in (("BLEU-4", "sacrebleu"), ("ROUGE-L", "rouge_score")):
        used = any(one.generated or (one.action and package == "sacrebleu") for one in scores)
        if used and importlib.util.find_spec(package) is None:
            _log(f"{metric} needs {package}, which is not installed: {install('evaluate')}")
    _write(options, trained, {"domains": [dataclasses.asdict(one) for one in scores]})
    return 0


def surprise_command(options: argparse.Namespace) -> int:
    """Compare the surprise of held-out and changed images; returns the exit status."""
    trained = TrainedRun.load(options.checkpoint)
    paths = data_paths(options.data, trained.domains)
    scores = evaluate_surprise(trained, trained.policy(options.domain), data=paths, split=options.split,
                               others=options.other, images=options.images, masks=options.masks, seed=options.seed)
    _log(format_surprise(scores))
    _write(options, trained, dataclasses.asdict(scores))
    return 0


def replay_command(options: argparse.Namespace) -> int:
    """Compare data, simulator and acting; returns the exit status: 1 if they differ."""
    trained = TrainedRun.load(options.checkpoint)
    domain = trained.domain(options.domain)
    policy = trained.policy(options.domain)
    policy.check_acts("replay")
    store, split = trained.open_store(domain, options.data), trained.split(domain, options.split)
    _log(f"checkpoint: {trained.directory}, step {trained.step}; domain {domain.name!r}\n"
         f"data: {store.directory}, split {split!r}")
    frames = replay_frames(trained, trained.params(), policy, store, split, most=options.episodes)
    _log(f"frames through the acting path: {frames.windows:,} windows, {frames.choices:,} choices; "
         f"{frames.different} differ from the evaluation forward, {frames.near_ties} near ties; accuracy "
         f"{frames.acting_accuracy:.2%} acting, {frames.forward_accuracy:.2%} forward; logits differ by at most "
         f"{frames.largest_difference:.1e}\n"
         f"exact actions: {frames.acting.exact:.2%} acting, {frames.forward.exact:.2%} forward")
    if frames.acting.errors:
        _log(f"mean absolute error, acting: {format_errors(frames.acting.errors)}")
    environment = options.env or collected_from(store)
    if environment:
        module = load(environment)
        check_domain(domain, module)
        _warn_of_version(store, module)
        episodes = recorded_episodes(store, domain, split, options.episodes)
        image_size = options.image_size or simulator_image_size(trained.config, environment, domain.name)
        with Simulators(environment, image_size, processes=options.processes) as simulators:
            tasks = replay_actions(simulators, episodes, domain)
        _log(format_replayed(tasks))
    else:
        tasks = []
        _log("actions in the simulator: not replayed, because the data set has no simulator of this package, task and "
             "seed of its episodes; name an environment of your own by --env")
    equal = not frames.different and not any(task.different or task.lost for task in tasks)
    _log("equal: acting, data and simulator agree" if equal else
         "MISMATCH: acting, data and simulator disagree; see above")
    _write(options, trained, {"domain": domain.name, "data": str(store.directory), "split": split, "alike": equal,
                              "frames": dataclasses.asdict(frames), "environment": environment,
                              "tasks": [dataclasses.asdict(task) for task in tasks]})
    return 0 if equal else 1


class _Videos:
    """Writes recordings; an error is reported and does not stop the evaluation. A context manager."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._directory = Path(options.video) if options.video else None
        self._rerun = RerunFile(options.rerun) if options.rerun else None
        self._kind: Format = options.format or default_format()
        self.error: Exception | None = None  # the last one
        if self._directory:
            check_format(self._kind)
            self._directory.mkdir(parents=True, exist_ok=True)

    def write(self, recording: RolloutRecording) -> None:
        """Write the video of an episode."""
        try:
            if self._rerun:
                self._rerun.log_rollout(recording)
            if self._directory:
                _log(f"video: {write_recording(self._directory, recording, kind=self._kind, with_seed=True)}")
        except (OSError, ValueError, RuntimeError) as error:  # FFmpeg raises subclasses of all three
            self.error = error
            _log(f"video not written: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rerun:
            self._rerun.__exit__()


def _warn_of_version(store: Store, module: EnvironmentModule) -> None:
    recorded = store.metadata.get("demonstrations", {}).get("simulator", "")
    if recorded and recorded != module.version():
        _log(f"warning: the data are from {recorded}, this is {module.version()}: a seed may give another episode")


def _tasks(options: argparse.Namespace, module: EnvironmentModule, config: Config, domain: str) -> tuple[str, ...]:
    """The tasks of --task, or of the run's own evaluation, or the environment's default suite."""
    if options.task:
        return tasks_of(module, options.task)
    if same_environment(config.closed_loop.environment, options.env) and config.closed_loop.episodes:
        return tuple(config.closed_loop.episodes)
    of_domain = config.closed_loop.domains.get(domain, {})
    if of_domain and same_environment(config.data.demonstrations_of(domain).environment, options.env):
        return tuple(of_domain)
    return tasks_of(module, list(module.TASKS)[:1])


def _write(options: argparse.Namespace, trained: TrainedRun, results: Mapping[str, Any]) -> None:
    """Write the results as JSON if --json is set."""
    if not options.json:
        return
    content = {
        "checkpoint": str(trained.directory), "step": trained.step,
        "damaged_steps_passed_over": list(trained.passed_over), **results,
        "command": " ".join(sys.argv), "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cores": cores(), "platform": platform.platform(), "python": platform.python_version(),
                    "jax": version("jax")},
    }
    write_json(options.json, content)
    _log(f"written: {options.json}")


def _log(text: str) -> None:
    print(text, flush=True)
