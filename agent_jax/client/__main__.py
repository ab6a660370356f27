"""`python -m agent_jax.client demo ws://HOST:PORT`: random observations to a server, and how long it took.

demo URL [--steps N] [--clients C] [--rate_hz R] [--json PATH]
    prints what the server says of its policy, then a table of latencies
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent_jax.client.connection import TOKEN_VARIABLE, Client
from agent_jax.client.demo import RandomObservations, format_table, measure
from agent_jax.runtime.interrupts import end_at_once


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 where there is no answer."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.client", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = parser.add_subparsers(dest="command", required=True).add_parser("demo", allow_abbrev=False)
    demo.add_argument("url", help="ws://HOST:PORT")
    demo.add_argument("--steps", type=int, default=100, help="actions of each client")
    demo.add_argument("--clients", type=int, default=1, help="robots at a time")
    demo.add_argument("--rate_hz", type=float, default=0.0, help="of each; 0: as fast as it is answered")
    demo.add_argument("--instruction", default="go")
    demo.add_argument("--token_file", default="", metavar="PATH",
                      help=f"holds the server's token; or the environment's {TOKEN_VARIABLE}")
    demo.add_argument("--json", metavar="PATH", help="also write the figures here")
    options = parser.parse_args(arguments)
    try:
        _demo(options)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _demo(options: argparse.Namespace) -> None:
    token = os.environ.get(TOKEN_VARIABLE, "")
    if options.token_file:
        token = Path(options.token_file).read_text(encoding="utf-8").strip()
    with Client(options.url, token=token) as client:
        told, seen = client.metadata, RandomObservations(client.metadata, 0)
        print(f"{options.url}: domain {told['domain']!r} of step {told['step']}, agent_jax "
              f"{told['versions']['agent_jax']}, window {told['window']}, cameras {', '.join(told['cameras'])} of "
              f"{told['image_size']} pixels, vocabulary {told['vocabulary_hash'][:12]}")
        action = client.act(seen.images(), options.instruction, seen.state())
        print("an action:", ", ".join(f"{key}={value}" for key, value in action.items()))
    found = measure(options.url, options.steps, options.clients, token=token, rate_hz=options.rate_hz,
                    instruction=options.instruction)
    print(format_table([found]))
    if options.json:
        Path(options.json).write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
