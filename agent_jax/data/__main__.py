"""`python -m agent_jax.data`: makes data sets from files of other formats, and describes data sets.

prepare --source KIND --path PATH --out DIR [--config FILE] [--config.FIELD=VALUE ...]
    convert data to a canonical store at DIR; repeat an interrupted command to continue it
check PATH
    describe a data set and its problems; exits 1 if there are any
show PATH --out FILE.png|FILE.html
    a contact sheet of a few episodes
stats PATH
    counts, and minimum, maximum, mean, standard deviation and quantiles of every number, as JSON
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig, read_prepare_config
from agent_jax.data.prepare.sources import DESCRIPTIONS
from agent_jax.fields import field_comments
from agent_jax.json_files import json_path, write_json
from agent_jax.runtime.extras import install

_USER_ERROR = 2  # equals cluster.USER_ERROR, whose module imports jax


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 if `check` finds problems, 2 for a user error, 130 at Ctrl-C.
    """
    options, rest = _parser().parse_known_args(arguments)
    try:
        return options.run(options, rest)
    except ModuleNotFoundError as error:
        print(f"error: {options.command} needs {error.name}: {install('data')}", file=sys.stderr)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, BadDataError) and options.command == "check" else _USER_ERROR
    except KeyboardInterrupt:
        advice = "; repeat the command to continue" if options.command == "prepare" else ""
        print(f"interrupted{advice}", file=sys.stderr)
        return 130  # as in a shell
    return _USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent_jax.data", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, allow_abbrev=False)
        subparser.set_defaults(run=run)
        if run is not _show:
            subparser.add_argument("--json", type=json_path, metavar="PATH", help="also write the figures to this file")
        return subparser

    preparing = command("prepare", _prepare, "convert data to a canonical store")
    preparing.formatter_class = argparse.RawDescriptionHelpFormatter
    preparing.epilog = _prepare_help()
    preparing.add_argument("--source", required=True, metavar="KIND", help=", ".join(DESCRIPTIONS))
    preparing.add_argument("--path", required=True, type=Path, help="folder or file of the data")
    preparing.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory of the new store")
    preparing.add_argument("--config", default="", metavar="FILE", help="FILE.json, or FILE.py with get_config()")
    preparing.add_argument("--processes", type=int, default=2, help="that read in parallel")
    preparing.add_argument("--on_error", choices=("stop", "skip"), default="stop",
                           help="at an unreadable recording: stop, or skip and count it")
    checking = command("check", _check, "describe a data set and its problems")
    checking.add_argument("path", type=Path, help="directory of the data set")
    checking.add_argument("--config", default="", metavar="FILE",
                          help="FILE.json, or FILE.py with get_config(), with the fields of a domain")
    checking.add_argument("--images", action="store_true", help="decode every image instead of its header")
    showing = command("show", _show, "a contact sheet")
    showing.add_argument("path", type=Path, help="directory of the data set")
    showing.add_argument("--out", required=True, type=Path, metavar="FILE", help="FILE.png or FILE.html")
    showing.add_argument("--config", default="", metavar="FILE", help="as for check")
    showing.add_argument("--split", default="", help="default: the first")
    showing.add_argument("--episodes", type=int, default=6)
    showing.add_argument("--frames", type=int, default=8, help="of each episode, evenly spaced")
    counting = command("stats", _stats, "statistics of every number, as JSON")
    counting.add_argument("path", type=Path, help="directory of the data set")
    return parser


def _prepare_help() -> str:
    """All sources and fields, for `prepare --help`."""
    width = max(map(len, DESCRIPTIONS))
    sources = [f"  {kind:{width}}  {text}" for kind, text in DESCRIPTIONS.items()]
    fields = []
    for field in dataclasses.fields(PrepareConfig):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        text = f"--config.{field.name} (default {json.dumps(default)}): {field_comments(PrepareConfig)[field.name]}"
        fields.append(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False))
    return "\n".join(["sources (docs/guides/data_sources.md has their options):", *sources, "", "fields:", *fields])


def _prepare(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.data.prepare.prepare import prepare, summary_lines

    if options.processes < 1:
        raise ValueError(f"--processes={options.processes}: expected at least 1")
    config = read_prepare_config(options.config, overrides)
    store, summary = prepare(options.source, options.path, options.out, config, processes=options.processes,
                             on_error=options.on_error)
    print("\n".join(summary_lines(store, summary)))
    if options.json:
        write_json(options.json, {"directory": str(store.directory), "splits": dict(store.splits), **summary})
    return 0


def _check(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.data.inspect.check import check
    from agent_jax.data.inspect.config import read_check_config

    report = check(options.path, read_check_config(options.path, options.config, overrides), images=options.images)
    print(report.text())
    if options.json:
        write_json(options.json, report.figures)
    return 1 if report.problems else 0


def _show(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.data.inspect.config import read_check_config
    from agent_jax.data.inspect.contact_sheet import show

    config = read_check_config(options.path, options.config, overrides)
    print(show(options.path, options.out, config, split=options.split, episodes=options.episodes,
               frames=options.frames))
    return 0


def _stats(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.data.inspect.stats import stats

    if overrides:
        raise ValueError(f"{overrides[0]}: unexpected argument")
    figures = stats(options.path)
    if options.json:
        write_json(options.json, figures)
    else:
        print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
