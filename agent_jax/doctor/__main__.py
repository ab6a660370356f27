"""`python -m agent_jax.doctor`: is this machine ready, and are these data sound?

python -m agent_jax.doctor [--json PATH]
    versions, devices, memory, attention, codecs, simulators, tokenizer and disk, one line each with what to do;
    exits 1 if something that every run needs is broken
python -m agent_jax.doctor data DIR|FILE|ORG/NAME [--out DIR] [--json PATH]
    faults of a data set of any format that `prepare` reads, without a config; exits 1 if something is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from agent_jax.json_files import json_path, write_json
from agent_jax.runtime.extras import install

_USER_ERROR = 2
_EPISODES = 300  # of a sample: at most 115 MB of thumbnails a camera, and minutes to read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for faults, 2 for a user error, 130 at Ctrl-C."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        if options.command == "data":
            return _data(options, rest)
        if rest:
            raise ValueError(f"{rest[0]}: unexpected argument")
        return _environment(options)
    except ModuleNotFoundError as error:
        print(f"error: these data need {error.name}: {install('data')}", file=sys.stderr)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as in a shell
    return _USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent_jax.doctor", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=json_path, metavar="PATH", help="also write the figures to this file")
    commands = parser.add_subparsers(dest="command")
    data = commands.add_parser("data", help="faults of a data set", allow_abbrev=False)
    data.add_argument("path", type=Path, help="folder or file, or ORG/NAME of a data set on the Hugging Face hub")
    data.add_argument("--source", default="", metavar="KIND", help="as in `prepare`; default: recognised by the files")
    data.add_argument("--episodes", type=int, default=_EPISODES, metavar="N",
                      help=f"read at most N, evenly spaced (default {_EPISODES}; 0: all, in memory in proportion)")
    data.add_argument("--out", type=Path, metavar="DIR", help="write a picture of each finding into this folder")
    data.add_argument("--json", type=json_path, metavar="PATH", help="also write the findings to this file")
    return parser


def _environment(options: argparse.Namespace) -> int:
    from agent_jax.doctor.environment import examine_machine

    checks = examine_machine()
    for check in checks:
        print(check.line())
    if options.json:
        write_json(options.json, {"checks": [check.to_json() for check in checks]})
    return 1 if any(check.state == "broken" for check in checks) else 0


def _data(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.doctor.data import examine

    report = examine(options.path, kind=options.source, overrides=overrides, episodes=options.episodes,
                     out=options.out)
    print("\n".join(report.lines))
    if options.json:
        write_json(options.json, report.figures)
    return 1 if any(finding.level == "wrong" for finding in report.findings) else 0


if __name__ == "__main__":
    sys.exit(main())
