"""The agent exported to PyTorch acts in a simulator on the seeds of the JAX agent, greedily: the same successes?

    python benchmarks/exported_closed_loop.py --checkpoint WORKDIR --folder FOLDER [--environment babyai]
        [--level GoToLocal] [--episodes 200] [--seed 1000000000] [--json PATH]

FOLDER is made from WORKDIR by `python -m agent_jax.convert to-pytorch`. Ours is compiled before it acts. Prints success
with its 95% interval, steps, and seconds in the policy of both, and how many episodes ended alike. Exit status 1 if
PyTorch's success lies outside the interval of ours.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from machine import describe, write_json

from agent_jax.convert.pytorch import torch_agent
from agent_jax.envs import load
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import at_a_time, check_domain
from agent_jax.evaluate.in_training import simulator_image_size
from agent_jax.evaluate.rollouts import CONCURRENT, ObservationKeys, run_policy
from agent_jax.evaluate.statistics import success_summary
from agent_jax.json_files import json_path
from agent_jax.policy import Policy


def main() -> int:
    """Run both; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--environment", default="babyai")
    parser.add_argument("--level", default="GoToLocal")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1_000_000_000)
    parser.add_argument("--domain", default="")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    machine = describe()

    trained = TrainedRun.load(options.checkpoint)
    ours = Policy.load(options.checkpoint, domain=options.domain, step=trained.step)
    theirs = torch_agent.Policy(options.folder, domain=options.domain or ours.domain.name)
    module, keys = load(options.environment), ObservationKeys.of(ours.domain)
    check_domain(ours.domain, module)
    concurrent = at_a_time(module, CONCURRENT, processes=0)
    image_size = simulator_image_size(trained.config, options.environment)
    begun = time.perf_counter()
    ours.warm_up((concurrent,))
    compile_seconds = time.perf_counter() - begun
    print(f"jax    compiled in {compile_seconds:.1f} s", flush=True)
    found, results = {}, []
    for name, policy in (("jax", ours), ("torch", theirs)):
        seeds = range(options.seed, options.seed + options.episodes)
        with Simulators(options.environment, image_size, keys=keys.all) as simulators:
            result = run_policy(policy, simulators, options.level, seeds, keys=keys, concurrent=concurrent)
        summary = success_summary(result.success)
        found[name] = {**summary, "mean_steps": float(result.steps.mean()), "policy_seconds": result.policy_seconds}
        low, high = summary["ci95"]
        print(f"{name:<6} {summary['success']:.1%} [{low:.1%}, {high:.1%}] of {options.episodes}, "
              f"{result.steps.mean():.2f} steps, {result.policy_seconds:.1f} s in the policy", flush=True)
        results.append(result)
    alike = int(np.sum((results[0].success == results[1].success) & (results[0].steps == results[1].steps)))
    low, high = found["jax"]["ci95"]
    within = low <= found["torch"]["success"] <= high
    print(f"{alike} of {options.episodes} episodes ended alike; PyTorch's success is "
          f"{'within' if within else 'OUTSIDE'} the interval of ours")
    if options.json:
        write_json(options.json, machine, {"environment": options.environment, "level": options.level,
                                           "seed": options.seed, **found, "compile_seconds": compile_seconds,
                                           "alike": alike, "within": within})
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
