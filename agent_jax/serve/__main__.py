"""`python -m agent_jax.serve --checkpoint DIR`: a trained agent behind a websocket, for robots and simulators.

Says "ready" once it has compiled all that acting needs; until then /healthz answers 503. Ends on SIGTERM or Ctrl-C when
the requests under way are answered. The other end is `agent_jax.client`; docs/guides/serving.md has both.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from agent_jax.client.connection import TOKEN_VARIABLE
from agent_jax.runtime.extras import install
from agent_jax.runtime.interrupts import end_at_once, ignored
from agent_jax.serve.options import ServeOptions, read_token

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HELP = {
    "host": "address to listen on; 0.0.0.0: every one, and then with a token",
    "port": "0: any free one",
    "max_batch": "robots answered by one call of the policy",
    "max_wait_ms": "that the first robot of a batch waits for others",
    "max_connections": "robots at a time",
    "max_message_bytes": "of one message; a larger one ends its connection",
    "max_rate_hz": "messages of one connection a second; 0: no limit",
    "ping_s": "seconds between pings, and until a robot that does not answer one is gone",
    "drain_s": "seconds for the requests under way, when told to end",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for a user error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("agent_jax").setLevel(options.log_level.upper())
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # whoever knocks wrongly is answered; no trace of ours
    try:
        _serve(options)
    except ModuleNotFoundError as error:
        print(f"error: serving needs {error.name}: {install('serve')}", file=sys.stderr)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
    else:
        return 0
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent_jax.serve", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a workdir, its checkpoints, or one step")
    parser.add_argument("--domain", default="", help="to act in; needed if the run had several")
    parser.add_argument("--step", type=int, help="of the checkpoint; default: the newest undamaged one")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the best action")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--history", choices=("sliding", "flushed"), default="sliding")
    parser.add_argument("--flush_every", type=int, default=0, metavar="M", help="steps, of --history flushed")
    parser.add_argument("--ahead", action="store_true",
                        help="sliding history: read what is known of the next row once an action is sent")
    for field in dataclasses.fields(ServeOptions):
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        parser.add_argument(f"--{field.name}", type=kind, default=field.default,
                            help=f"{_HELP[field.name]} (default {field.default})")
    parser.add_argument("--token_file", default="", metavar="PATH",
                        help=f"holds the secret that clients must send; or the environment's {TOKEN_VARIABLE}")
    parser.add_argument("--action_limits", default="", metavar="FILE.json", help="[low, high] of components, by key")
    parser.add_argument("--beyond_limits", choices=("clamp", "refuse"), default="clamp",
                        help="what becomes of an action beyond them (default clamp)")
    parser.add_argument("--log_level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def _serve(options: argparse.Namespace) -> None:
    chosen = ServeOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ServeOptions)})
    token = read_token(options.token_file)

    from agent_jax.actions import ActionSpec
    from agent_jax.policy import Policy
    from agent_jax.runtime.host_memory import tune_heap
    from agent_jax.serve.handshake import metadata
    from agent_jax.serve.limits import ActionLimits
    from agent_jax.serve.server import Server

    begun = time.monotonic()
    tune_heap()
    policy = Policy.load(options.checkpoint, domain=options.domain, step=options.step, temperature=options.temperature,
                         seed=options.seed, history=options.history, flush_every=options.flush_every,
                         ahead=options.ahead)
    assert policy.taken is not None  # it was loaded
    taken = policy.taken
    spec = policy.domain.spec.spec if policy.domain.spec else None
    assert isinstance(spec, ActionSpec)  # Policy refuses domains without actions
    limits = ActionLimits(spec)
    if options.action_limits:
        limits = ActionLimits.read(options.action_limits, spec, options.beyond_limits)
    if not token and chosen.host not in ("127.0.0.1", "::1", "localhost"):
        logging.warning("--host=%s without a token: whoever reaches this port may ask the policy", chosen.host)

    async def run() -> None:
        hello = metadata(policy.domain, taken.step, checkpoint=os.path.basename(os.path.abspath(options.checkpoint)),
                         temperature=options.temperature, passed_over=taken.passed_over)
        server = Server(policy, hello, chosen, limits, token=token)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for number in _SIGNALS:  # a second one ends the process at once
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            server.stop()

        def told(phase: str) -> None:
            # Before, nobody is connected, and a signal ends the process at once.
            for number in _SIGNALS if phase == "ready" else ():
                if number == signal.SIGINT and ignored():
                    continue
                loop.add_signal_handler(number, stop)
            print(f"{phase}: domain {policy.domain.name!r} of step {taken.step} at ws://{chosen.host}:{server.port}, "
                  f"{time.monotonic() - begun:.1f} s", flush=True)

        await server.run(told)
        print(f"ended after {server.figures.counts['actions']} actions", flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
