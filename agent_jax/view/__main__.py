"""`python -m agent_jax.view`: self-contained HTML pages, which need no network and hold no script.

run WORKDIR [WORKDIR ...] --out FILE.html
    what was run, curves, success with intervals, failures; of several runs their differences and a paired test
row DATA|WORKDIR [--index N] [--split NAME] [--config FILE] [--config.FIELD=VALUE ...] [--rerun FILE.rrd]
    --out FILE.html
    one row as the model receives it: tokens by kind, targets and weights, samples, images
attention CHECKPOINT --episode N [--step N] [--data DIR] [--split NAME] [--domain NAME] [--block N] --out FILE.html
    where an action looks over the images of its window, by attention and by occlusion, and their rank correlation
rollout --checkpoint DIR --env ENV [options of `python -m agent_jax.evaluate closed-loop`] --out FILE.html
    success in a simulator, and videos of episodes with action and probability by step
reconstruction CHECKPOINT [--domain NAME] [--split NAME] [--images N] --out FILE.html
    images, their visible patches, and what the masked autoencoder reconstructs of them
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.config import VisionConfig
from agent_jax.evaluate.__main__ import add_closed_loop_arguments
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.commands import closed_loop_command
from agent_jax.evaluate.rerun_file import rerun_path
from agent_jax.json_files import read_json_object
from agent_jax.view.episodes import write_rollout_page
from agent_jax.view.page import page_path
from agent_jax.view.reconstruction import PICTURED_IMAGES, write_reconstruction_page
from agent_jax.view.row import write_row_page
from agent_jax.view.run import write_run_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.view", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="a page about runs", allow_abbrev=False)
    running.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    running.set_defaults(run=_run)
    laying_out = commands.add_parser("row", help="a row as the model receives it", allow_abbrev=False)
    laying_out.add_argument("data", type=Path, metavar="DATA|WORKDIR",
                            help="directory of a data set, or the workdir of a run, which packs its mixture")
    laying_out.add_argument("--index", type=int, default=0, metavar="N", help="number of the row")
    laying_out.add_argument("--split", default="", help="of a data set; default: its train split")
    laying_out.add_argument("--config", default="", metavar="FILE",
                            help="of a data set: FILE.json or FILE.py with the fields of a domain, or the config of a "
                            "run, whose image size, patches and tokenizer then count; default: images of "
                            f"{VisionConfig().image_size} pixels in patches of {VisionConfig().patch_size}, a token a "
                            "byte")
    laying_out.add_argument("--rerun", type=rerun_path, metavar="FILE.rrd", help="also write the row's samples for the "
                            "Rerun viewer")
    laying_out.set_defaults(run=_row)
    looking = commands.add_parser("attention", help="where an action looks", allow_abbrev=False)
    _add_checkpoint(looking)
    looking.add_argument("--episode", type=int, required=True, metavar="N", help="number of the record in the split")
    looking.add_argument("--step", type=int, metavar="N",
                         help="of the episode; default: the first with a whole window before it")
    looking.add_argument("--data", default="", metavar="DIR", help="data set; default: the run's own")
    looking.add_argument("--block", type=int, default=0, metavar="N",
                         help="patches of a side of the square that is hidden at a time; default: 1, or more in large "
                         "models")
    looking.set_defaults(run=_attention)
    acting = commands.add_parser("rollout", help="act in a simulator", allow_abbrev=False)
    add_closed_loop_arguments(acting)
    acting.set_defaults(run=_rollout)
    rebuilding = commands.add_parser("reconstruction", help="reconstructed images", allow_abbrev=False)
    _add_checkpoint(rebuilding)
    rebuilding.add_argument("--images", type=int, default=PICTURED_IMAGES, metavar="N", help="of each domain")
    rebuilding.set_defaults(run=_reconstruction)
    for command in commands.choices.values():
        command.add_argument("--out", required=True, metavar="FILE.html", help="of the page")
    options, overrides = parser.parse_known_args(arguments)
    try:
        options.out = page_path(options.out)
        if overrides and options.command != "row":
            raise ValueError(f"{overrides[0]}: unexpected argument")
        options.run(options, overrides)
    except (OSError, ValueError, RuntimeError, ImportError, DamagedCheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"page: {options.out}", flush=True)
    return 0


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a workdir, its checkpoints directory, or one step")
    parser.add_argument("--domain", default="", metavar="NAME", help="if the checkpoint has several")
    parser.add_argument("--split", default="", metavar="NAME", help="default: the run's validation split")


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    del overrides
    write_run_page(options.out, [directory.expanduser() for directory in options.workdirs])


def _row(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    print(write_row_page(options.out, options.data.expanduser(), options.index, config=options.config,
                         overrides=overrides, split=options.split, rerun=options.rerun))


def _attention(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from agent_jax.view.attention import write_attention_page  # scipy takes long to import

    del overrides
    print(write_attention_page(options.out, TrainedRun.load(options.checkpoint), episode=options.episode,
                               step=options.step, domain=options.domain, data=options.data, split=options.split,
                               block=options.block))


def _rollout(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    del overrides
    with tempfile.TemporaryDirectory(prefix="agent_jax-") as directory:
        options.json = options.json or Path(directory) / "results.json"
        options.video = options.video or str(Path(directory) / "videos")
        closed_loop_command(options)
        write_rollout_page(options.out, read_json_object(options.json), Path(options.video))


def _reconstruction(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    del overrides
    write_reconstruction_page(options.out, TrainedRun.load(options.checkpoint), domain=options.domain,
                              split=options.split, images=options.images)


if __name__ == "__main__":
    sys.exit(main())
