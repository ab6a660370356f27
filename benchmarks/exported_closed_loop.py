"""An exported agent acts in a simulator on the seeds of the JAX agent, greedily: the same successes?

    python benchmarks/exported_closed_loop.py --checkpoint WORKDIR --folder FOLDER [--environment babyai]
        [--level GoToLocal] [--episodes 200] [--seed 1000000000] [--json PATH]
    python benchmarks/exported_closed_loop.py --against PATH --folder FOLDER [--json OTHER_PATH]

FOLDER is made from WORKDIR by `python -m agent_jax.convert to-pytorch` or `to-onnx`. Ours is compiled before it acts.
Prints success with its 95% interval, steps, and seconds in the policy of both, and how many episodes ended alike. Exit
status 1 if the exported agent's success lies outside the interval of ours.

With --against, ours is not run again: its episodes are those of the --json of an earlier run. A folder for onnxruntime
then acts in an environment without jax and torch; it needs onnxruntime, tokenizers, pillow, and for the
simulator and the figures scipy, ml_collections and the simulator's packages.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write_json

from agent_jax.envs import load
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.rollouts import CONCURRENT, ObservationKeys, run_policy
from agent_jax.evaluate.statistics import success_summary
from agent_jax.json_files import json_path


def run(name: str, policy: Any, keys: ObservationKeys, setting: dict[str, Any]) -> dict[str, Any]:
    """Act in all episodes; prints and returns the figures."""
    module = load(setting["environment"])
    concurrent = 1 if module.ONE_A_PROCESS else CONCURRENT
    seeds = range(setting["seed"], setting["seed"] + setting["episodes"])
    with Simulators(setting["environment"], setting["image_size"], keys=keys.all) as simulators:
        result = run_policy(policy, simulators, setting["level"], seeds, keys=keys, concurrent=concurrent)
    summary = success_summary(result.success)
    low, high = summary["ci95"]
    print(f"{name:<6} {summary['success']:.1%} [{low:.1%}, {high:.1%}] of {setting['episodes']}, "
          f"{result.steps.mean():.2f} steps, {result.policy_seconds:.1f} s in the policy", flush=True)
    return {**summary, "mean_steps": float(result.steps.mean()), "policy_seconds": result.policy_seconds,
            "successes": result.success.tolist(), "steps": result.steps.tolist()}


def ours(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The JAX agent's figures, the setting, and the seconds that it compiled."""
    from agent_jax.evaluate.checkpoints import TrainedRun
    from agent_jax.evaluate.closed_loop import check_domain
    from agent_jax.evaluate.in_training import simulator_image_size
    from agent_jax.policy import Policy

    trained = TrainedRun.load(options.checkpoint)
    policy = Policy.load(options.checkpoint, domain=options.domain, step=trained.step)
    check_domain(policy.domain, load(options.environment))
    setting = {"environment": options.environment, "level": options.level, "seed": options.seed,
               "episodes": options.episodes, "domain": policy.domain.name,
               "image_size": simulator_image_size(trained.config, options.environment)}
    begun = time.perf_counter()
    policy.warm_up((1 if load(options.environment).ONE_A_PROCESS else CONCURRENT,))
    compile_seconds = time.perf_counter() - begun
    print(f"jax    compiled in {compile_seconds:.1f} s", flush=True)
    return run("jax", policy, ObservationKeys.of(policy.domain), setting), setting, compile_seconds


def exported(folder: Path, setting: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The engine of an exported folder, and its figures."""
    if (folder / "manifest.json").is_file():
        # The folder's own file, as on a robot.
        agent = runpy.run_path(str(folder / "onnx_agent.py"))
        engine, policy = "onnx", agent["Policy"](folder, domain=setting["domain"])
    else:
        from agent_jax.convert.pytorch.torch_agent import Policy

        engine, policy = "torch", Policy(folder, domain=setting["domain"])
    state = policy.domain.state
    keys = ObservationKeys(tuple(policy.domain.cameras), tuple(state.fields) if state else ())
    return engine, run(engine, policy, keys, setting)


def main() -> int:
    """Run both; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--checkpoint")
    one.add_argument("--against", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--environment", default="babyai")
    parser.add_argument("--level", default="GoToLocal")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1_000_000_000)
    parser.add_argument("--domain", default="")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    machine = describe(accelerators=options.checkpoint is not None)

    if options.against:
        earlier = json.loads(options.against.read_text())
        jax, setting, compile_seconds = earlier["jax"], earlier["setting"], earlier["compile_seconds"]
    else:
        jax, setting, compile_seconds = ours(options)
    engine, found = exported(options.folder, setting)
    alike = int(np.sum((np.array(jax["successes"]) == found["successes"]) & (np.array(jax["steps"]) == found["steps"])))
    low, high = jax["ci95"]
    within = low <= found["success"] <= high
    print(f"{alike} of {setting['episodes']} episodes ended alike; the success of {engine} is "
          f"{'within' if within else 'OUTSIDE'} the interval of ours")
    if options.json:
        write_json(options.json, machine, {
            "environment": setting["environment"], "level": setting["level"], "seed": setting["seed"], "jax": jax,
            engine: found, "setting": setting, "compile_seconds": compile_seconds, "alike": alike, "within": within})
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
