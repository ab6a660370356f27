"""`python -m agent_jax.serve --checkpoint DIR`: serve a trained agent on a websocket, for robots and simulators.

With `--folder DIR --engine onnx` it serves a folder of `agent_jax.convert to-onnx`, and needs neither JAX nor PyTorch.
Prints "ready" when everything is compiled; until then /healthz returns 503. After SIGTERM or Ctrl-C it answers the
current requests and ends. The client is `agent_jax.client`; docs/guides/serving.md describes both.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

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
        extra = "onnx" if error.name == "onnxruntime" else "serve"
        print(f"error: serving needs {error.name}: {install(extra)}", file=sys.stderr)
    except (OSError, ValueError, RuntimeError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = f"; --port={options.port} is in use, pass another one, or 0 for any free one" if in_use else ""
        print(f"error: {error}{hint}", file=sys.stderr)
    else:
        return 0
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent_jax.serve", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    served = parser.add_mutually_exclusive_group(required=True)
    served.add_argument("--checkpoint", metavar="DIR", help="a workdir, its checkpoints, or one step")
    served.add_argument("--folder", metavar="DIR", help="an exported folder, with --engine onnx")
    parser.add_argument("--engine", choices=("jax", "onnx"), default="jax", help="jax for --checkpoint (default)")
    parser.add_argument("--threads", type=int, default=0, help="of --engine onnx; 0: one for each core")
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


def _checkpoint(options: argparse.Namespace) -> tuple[Any, int, Sequence[int]]:
    """The policy of a checkpoint, its step, and damaged newer steps."""
    if options.engine != "jax" or options.threads:
        raise ValueError(f"--checkpoint with --engine {options.engine} --threads {options.threads}: a checkpoint is "
                         "served by --engine jax without --threads; export it by `agent_jax.convert to-onnx` and pass "
                         "--folder")
    from agent_jax.policy import Policy
    from agent_jax.runtime.host_memory import tune_heap

    tune_heap()
    policy = Policy.load(options.checkpoint, domain=options.domain, step=options.step, temperature=options.temperature,
                         seed=options.seed, history=options.history, flush_every=options.flush_every,
                         ahead=options.ahead, replan_every=options.replan_every)
    assert policy.taken is not None  # it was loaded
    return policy, policy.taken.step, policy.taken.passed_over


def _folder(options: argparse.Namespace) -> tuple[Any, int, Sequence[int]]:
    """The policy of an exported folder, its step, and none."""
    if options.engine != "onnx":
        raise ValueError(f"--folder={options.folder} with --engine {options.engine}: an exported folder is served by "
                         "--engine onnx")
    for flag, unset in (("step", None), ("ahead", False), ("replan_every", 0), ("surprise", 0)):
        if getattr(options, flag) != unset:
            raise ValueError(f"--{flag}={getattr(options, flag)} is for --checkpoint; an exported folder has one step, "
                             "and acts without it")
    from agent_jax.convert.onnx.folder_policy import FolderPolicy

    policy = FolderPolicy(options.folder, domain=options.domain, temperature=options.temperature, seed=options.seed,
                          history=options.history, flush_every=options.flush_every, threads=options.threads)
    return policy, policy.step_number, ()


def _serve(options: argparse.Namespace) -> None:
    chosen = ServeOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ServeOptions)})
    token = read_token(options.token_file)

    from agent_jax.actions import ActionSpec
    from agent_jax.serve.handshake import metadata
    from agent_jax.serve.limits import ActionLimits
    from agent_jax.serve.server import Server

    begun = time.monotonic()
    policy, step, passed_over = _folder(options) if options.folder else _checkpoint(options)
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
        name = os.path.basename(os.path.abspath(options.folder or options.checkpoint))
        first = metadata(policy.domain, step, checkpoint=name, temperature=options.temperature,
                         passed_over=passed_over, domains=policy.domains, replan_every=policy.replan_every,
                         engine="onnxruntime" if options.folder else "jax")
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
            print(f"{phase}: domain {policy.domain.name!r} of step {step} at ws://{chosen.host}:{server.port}, "
                  f"{time.monotonic() - begun:.1f} s", flush=True)

        await server.run(enter_phase)
        print(f"ended after {server.metrics.counts['actions']} actions", flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
