"""`python -m agent_jax.client demo ws://HOST:PORT`: send random observations to a server and measure the latency.

demo URL [--steps N] [--clients C] [--rate_hz R] [--json PATH]
    prints the metadata of the server's policy, then a table of latencies
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
    """Run the command line; returns the exit status: 0, or 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.client", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = parser.add_subparsers(dest="command", required=True).add_parser("demo", allow_abbrev=False)
    demo.add_argument("url", help="ws://HOST:PORT")
    demo.add_argument("--steps", type=int, default=100, help="requests of each client")
    demo.add_argument("--clients", type=int, default=1, help="connections at a time")
    demo.add_argument("--rate_hz", type=float, default=0.0, help="of each client; 0: without a pause")
    demo.add_argument("--instruction", default="go")
    demo.add_argument("--token_file", default="", metavar="PATH",
                      help=f"file with the server's token; or set the variable {TOKEN_VARIABLE}")
    demo.add_argument("--json", metavar="PATH", help="also write the results here")
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
        metadata, observations = client.metadata, RandomObservations(client.metadata, 0)
        print(f"{options.url}: domain {metadata['domain']!r} of step {metadata['step']}, agent_jax "
              f"{metadata['versions']['agent_jax']}, window {metadata['window']}, cameras "
              f"{', '.join(metadata['cameras'])} of {metadata['image_size']} pixels, vocabulary "
              f"{metadata['vocabulary_hash'][:12]}")
        found = client.act(observations.images(), options.instruction, observations.state())
        actions = found if isinstance(found, list) else [found]
        shown = [", ".join(f"{key}={value}" for key, value in action.items()) for action in actions]
        print("an action:" if len(shown) == 1 else f"{len(shown)} actions:", "; ".join(shown))
    report = measure(options.url, options.steps, options.clients, token=token, rate_hz=options.rate_hz,
                     instruction=options.instruction)
    print(format_table([report]))
    if options.json:
        Path(options.json).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
