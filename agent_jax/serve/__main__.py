"""`python -m agent_jax.serve --checkpoint DIR`: serve a trained agent on a websocket, for robots and simulators.

Prints "ready" when everything is compiled; until then /healthz returns 503. After SIGTERM or Ctrl-C it answers the
current requests and ends. The client is `agent_jax.client`; docs/guides/serving.md describes both.
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
    "host": "address to listen on; 0.0.0.0: all, only with a token",
    "port": "0: any free port",
    "max_batch": "requests in one call of the policy",
    "max_wait_ms": "time the first request of a batch waits for others",
    "max_connections": "connections at a time",
    "max_message_bytes": "of one message; a larger one closes its connection",
    "max_rate_hz": "messages a second of one connection; 0: no limit",
    "ping_s": "seconds between pings, and until a connection without an answer is closed",
    "surprise": "masks of the surprise that a client may ask for with an action; 0: none",
    "drain_s": "seconds to finish the current requests at the end",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for a user error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("agent_jax").setLevel(options.log_level.upper())
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # no traceback for malformed requests
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
    parser.add_argument("--domain", default="", help="to act in; required if the run has several with actions")
    parser.add_argument("--step", type=int, help="of the checkpoint; default: the newest undamaged step")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the best action")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--history", choices=("sliding", "flushed"), default="sliding")
    parser.add_argument("--flush_every", type=int, default=0, metavar="M", help="steps of --history flushed")
    parser.add_argument("--replan_every", type=int, default=0, metavar="R",
                        help="actions executed for each observation, if the domain has several per image; 0: all")
    parser.add_argument("--ahead", action="store_true",
                        help="sliding history: prefill the known part of the next row after an action is sent")
    for field in dataclasses.fields(ServeOptions):
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        parser.add_argument(f"--{field.name}", type=kind, default=field.default,
                            help=f"{_HELP[field.name]} (default {field.default})")
    parser.add_argument("--token_file", default="", metavar="PATH",
                        help=f"file with the clients' secret; or set the variable {TOKEN_VARIABLE}")
    parser.add_argument("--action_limits", default="", metavar="FILE.json", help="[low, high] of components, by key")
    parser.add_argument("--beyond_limits", choices=("clamp", "refuse"), default="clamp",
                        help="clamp or refuse an action beyond the limits (default clamp)")
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
                         ahead=options.ahead, replan_every=options.replan_every)
    assert policy.taken is not None  # it was loaded
    taken = policy.taken
    spec = policy.domain.spec.spec if policy.domain.spec else None
    limits = None  # of a policy that only says
    if isinstance(spec, ActionSpec):
        limits = ActionLimits(spec)
        if options.action_limits:
            limits = ActionLimits.read(options.action_limits, spec, options.beyond_limits)
    elif options.action_limits or not any(domain.layout == "answer" for domain in policy.domains.values()):
        policy.check_acts("serve")
    if not token and chosen.host not in ("127.0.0.1", "::1", "localhost"):
        logging.warning("--host=%s without a token: anyone who can reach this port can use the policy", chosen.host)

    async def run() -> None:
        first = metadata(policy.domain, taken.step, checkpoint=os.path.basename(os.path.abspath(options.checkpoint)),
                         temperature=options.temperature, passed_over=taken.passed_over, domains=policy.domains,
                         replan_every=policy.replan_every)
        server = Server(policy, first, chosen, limits, token=token)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for number in _SIGNALS:  # a second signal ends the process at once
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            server.stop()

        def enter_phase(phase: str) -> None:
            # Before "ready" there are no connections, and a signal ends the process at once.
            for number in _SIGNALS if phase == "ready" else ():
                if number == signal.SIGINT and ignored():
                    continue
                loop.add_signal_handler(number, stop)
            print(f"{phase}: domain {policy.domain.name!r} of step {taken.step} at ws://{chosen.host}:{server.port}, "
                  f"{time.monotonic() - begun:.1f} s", flush=True)

        await server.run(enter_phase)
        print(f"ended after {server.metrics.counts['actions']} actions", flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
