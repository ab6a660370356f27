"""`python -m agent_jax.view`: self-contained HTML pages, which need no network and hold no script.

run WORKDIR [WORKDIR ...] --out FILE.html
    what was run, curves, success with intervals, failures; of several runs their differences and a paired test
row DATA|WORKDIR [--index N] [--split NAME] [--config FILE] [--config.FIELD=VALUE ...] --out FILE.html
    one row as the model receives it: tokens by kind, targets and weights, samples, images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.view.page import page_path
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
                            "run, whose image size, patches and tokenizer then count")
    laying_out.set_defaults(run=_row)
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


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    del overrides
    write_run_page(options.out, [directory.expanduser() for directory in options.workdirs])


def _row(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    print(write_row_page(options.out, options.data.expanduser(), options.index, config=options.config,
                         overrides=overrides, split=options.split))


if __name__ == "__main__":
    sys.exit(main())
