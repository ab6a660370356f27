"""`python -m agent_jax.evaluate`: evaluate a checkpoint.

closed-loop --checkpoint DIR --env ENV [--task NAME ...] [--episodes N] [--baselines] [--video DIR] [--json PATH]
    act in a simulator: success of each task with its 95% interval
replay --checkpoint DIR [--data DIR] [--env ENV] [--json PATH]
    replay recorded actions in the simulator, raw and after encode-decode; compare the acting path with the evaluation
    forward on recorded frames. Exit status 1 if they differ
offline --checkpoint DIR [--data NAME=DIR ...] [--split NAME] [--json PATH]
    accuracy of choices and of whole actions, errors by name and unit, precision and recall of buttons, perplexity and
    BLEU-4, accuracy and macro-F1 of classes, by domain with intervals over recordings
surprise --checkpoint DIR [--domain NAME] [--data NAME=DIR ...] [--other DIR ...] [--json PATH]
    MAE error of held-out images against changed cameras, colours and other environments: AUROC with intervals; its
    milliseconds next to an action's
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.envs import NAMES
from agent_jax.envs.instructions import AS_IS, KINDS
from agent_jax.evaluate import commands
from agent_jax.evaluate.rerun_file import rerun_path
from agent_jax.json_files import json_path
from agent_jax.runtime.interrupts import end_at_once

_CUSTOM = "MODULE, FILE.py, MODULE:CLASS or FILE.py:CLASS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.evaluate", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True)
    add_closed_loop_arguments(subparsers.add_parser("closed-loop", help="act in a simulator", allow_abbrev=False))
    _add_replay(subparsers.add_parser("replay", help="compare data, simulator and acting",
                                      allow_abbrev=False))
    _add_offline(subparsers.add_parser("offline", help="predict recorded data", allow_abbrev=False))
    _add_surprise(subparsers.add_parser("surprise", help="tell unseen images by their MAE error", allow_abbrev=False))
    options = parser.parse_args(arguments)
    run = {"closed-loop": commands.closed_loop_command, "replay": commands.replay_command,
           "offline": commands.offline_command, "surprise": commands.surprise_command}[options.command]
    try:
        return run(options)
    except (OSError, ValueError, RuntimeError, ImportError, DamagedCheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR",
                        help="a workdir, its checkpoints directory, or one step")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="also write the results here")


def _add_simulator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=2, metavar="P",
                        help="worker processes for the simulators (0: none); does not change results")
    parser.add_argument("--image_size", type=int, default=0, metavar="PIXELS",
                        help="of the simulator's images; default: as in the run's demonstrations")
    parser.add_argument("--domain", default="", help="to act in, if the checkpoint has several")


def add_closed_loop_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `closed_loop_command`."""
    _add_common(parser)
    _add_simulator(parser)
    parser.add_argument("--env", required=True, help=f"{', '.join(NAMES)}, or your own: {_CUSTOM}")
    parser.add_argument("--task", nargs="+", default=[], metavar="NAME",
                        help="tasks or suites; default: those of the run's own evaluation")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="of each task")
    parser.add_argument("--repeats", type=int, default=1, metavar="R",
                        help="repeat the episodes of each task with the next seeds; reports the standard deviation")
    parser.add_argument("--seed", type=int, default=1_000_000_000, metavar="S",
                        help="of the first episode; the next ones count up. Demonstrations use seeds below the default")
    parser.add_argument("--instruction", nargs="+", choices=KINDS, default=[AS_IS], metavar="KIND",
                        help=f"what the policy reads: {', '.join(KINDS)}; several: each on the same seeds, with the "
                        "differences from as-is")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    parser.add_argument("--history", choices=("sliding", "flushed"), default="sliding")
    parser.add_argument("--flush_every", type=int, default=0, metavar="STEPS", help="of --history flushed")
    parser.add_argument("--replan_every", type=int, default=0, metavar="R",
                        help="actions executed for each observation, if the domain has several per image; 0: all")
    parser.add_argument("--baselines", action="store_true", help="also run random actions and the environment's expert")
    parser.add_argument("--concurrent", type=int, default=32, metavar="N",
                        help="episodes at a time; can change results where two actions are nearly equal")
    parser.add_argument("--video", default="", metavar="DIR", help="write videos of rollouts here")
    parser.add_argument("--rerun", type=rerun_path, metavar="FILE.rrd", help="write the same rollouts for the Rerun "
                        "viewer")
    parser.add_argument("--videos", type=int, default=3, metavar="N", help="rollouts of each task")
    parser.add_argument("--format", choices=("mp4", "gif"), help="of the videos; default: mp4 if PyAV is installed")


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_simulator(parser)
    parser.add_argument("--data", default="", metavar="DIR", help="data set; default: the run's own")
    parser.add_argument("--split", default="", help="default: the run's validation split")
    parser.add_argument("--env", default="", help=f"environment, or your own: {_CUSTOM}; default: the environment of "
                        "this package that the data were collected from, if any")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="at most N; 0: all")


def _add_offline(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=DIR",
                        help="data set of a domain; default: the run's own")
    parser.add_argument("--split", default="", help="default: the run's validation split")
    parser.add_argument("--domain", default="", help="default: every domain")
    parser.add_argument("--free_running", action="store_true",
                        help="also decode actions with the policy's own earlier ones as history, and generate answers")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="at most N of each domain; 0: all")
    parser.add_argument("--recordings", type=int, default=0, metavar="N",
                        help="at most N of each domain, drawn with the run's seed; 0: all. The paper: 100 of a game")


def _add_surprise(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=DIR",
                        help="data set of a domain; default: the run's own")
    parser.add_argument("--split", default="", help="of the domain; default: the run's validation split")
    parser.add_argument("--domain", default="", help="whose images are held out, if the checkpoint has several")
    parser.add_argument("--other", nargs="+", default=[], metavar="DIR",
                        help="data sets of environments that the run has not seen")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="of each kind, at most, one a record")
    parser.add_argument("--masks", type=int, default=4, metavar="M", help="of each image")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of images and masks")


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
