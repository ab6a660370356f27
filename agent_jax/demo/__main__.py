"""`python -m agent_jax.demo`: watch an agent act on a page of this machine, take over, and teach it.

    python -m agent_jax.demo [--checkpoint runs/babyai]

The page is at the address that is printed, for this machine alone. What a person did is stored below --out, as are the
agents that learned from it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.runtime.extras import install
from agent_jax.runtime.host_memory import tune_heap


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.demo", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", metavar="DIR",
                        help="a workdir, its checkpoints directory, or one step; may be given several times (default "
                        "babyai-small, a small agent that comes with the package)")
    parser.add_argument("--env", default="", help="simulator to act in; default: those of the run")
    parser.add_argument("--domain", default="", help="to act in; default: those that have a simulator")
    parser.add_argument("--port", type=int, default=8765, help="of this machine; 0: any free one (default 8765)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="of demonstrations and fine-tuned agents (default runs/demo)")
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 1 << 16:
        parser.error(f"--port={options.port}: expected 0 to 65535")
    try:
        asyncio.run(_serve(options))
    except ModuleNotFoundError as error:
        if error.name != "websockets":
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"error: the demo needs {error.name}: {install('demo')}", file=sys.stderr)
    except OSError as error:
        hint = f"; --port={options.port} may be in use, pass another one" if error.errno == 98 else ""
        print(f"error: {error}{hint}", file=sys.stderr)
    except (ValueError, DamagedCheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    else:
        return 0
    return 2


async def _serve(options: argparse.Namespace) -> None:
    from agent_jax.demo.agents import agents_of
    from agent_jax.demo.server import HOST, DemoServer

    tune_heap()
    agents = [agent for checkpoint in options.checkpoint or ["babyai-small"]
              for agent in agents_of(checkpoint, options.env, options.domain)]
    server = DemoServer(agents, options.out, port=options.port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    await server.run(lambda: print(f"the page: http://{HOST}:{server.port}/    (Ctrl-C ends it)", flush=True))


if __name__ == "__main__":
    sys.exit(main())
