"""The server of the page: one page at a time, on this machine alone.

    GET / page.js page.css     the page
    GET /session (websocket)   page: open, begin, step, act, finetune, cancel -> server: opened, frame, tuning, error

The page asks for each step, so it sets the pace; everything an agent or a simulator does runs in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import functools
import http
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.demo.agents import ShownAgent, agents_of
from agent_jax.demo.finetune import RESULT_FILE, Job
from agent_jax.demo.session import Session
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.json_files import read_json_object, write_json

HOST = "127.0.0.1"
_FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
          "/page.css": ("page.css", "text/css")}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'"
_MOST_BYTES = 1 << 16  # of a message of the page
_log = logging.getLogger(__name__)


class DemoServer:
    """Serves the page until `stop`."""

    def __init__(self, agents: list[ShownAgent], out: Path, *, port: int = 0) -> None:
        """Create a server; `run` starts it.

        Args:
            agents: to choose among; the first is open when the page appears.
            out: directory of demonstrations and of fine-tuned agents, by the time of the start.
            port: of HOST; 0: any free one.
        """
        self.agents, self.port = list(agents), port
        self._out = out / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self._thread = ThreadPoolExecutor(1, "session")
        self._session: Session | None = None
        self._opened: dict[str, Any] = {}
        self._page: ServerConnection | None = None
        self._tuning: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End; to be called in the event loop's thread."""
        self._stopped.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, then store what a person did.

        Args:
            on_ready: called when the page can be opened; `port` is set before.

        Raises:
            OSError: the port is in use.
        """
        async with serve(self._handle, HOST, self.port, process_request=self._admit, max_size=_MOST_BYTES,
                         server_header=None) as listening:
            self.port = next(iter(listening.sockets)).getsockname()[1]
            on_ready()
            await self._stopped.wait()
            if self._tuning:
                self._tuning.cancel()
                await asyncio.gather(self._tuning, return_exceptions=True)
            if self._session:
                await self._call(self._session.close)
        self._thread.shutdown()

    async def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function in the thread of agent and simulator."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, functools.partial(function, *arguments, **options))

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response to a plain request or a refused connection; None accepts the page's connection."""
        own = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        # Neither another site's page nor a name that was pointed at this machine.
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if len(hosts) != 1 or hosts[0] not in own or any(origin not in {f"http://{host}" for host in own}
                                                         for origin in origins):
            return connection.respond(http.HTTPStatus.FORBIDDEN, f"host {hosts}, origin {origins}: expected "
                                                                 f"http://{HOST}:{self.port}\n")
        path = request.path.partition("?")[0]
        if path == "/session":
            return None
        if path not in _FILES:
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"expected /, found {path[:80]!r}\n")
        name, kind = _FILES[path]
        content = (Path(__file__).with_name("assets") / name).read_text(encoding="utf-8")
        response = connection.respond(http.HTTPStatus.OK, content)
        del response.headers["Content-Type"]
        response.headers.update({"Content-Type": f"{kind}; charset=utf-8", "Content-Security-Policy": _POLICY,
                                 "Cache-Control": "no-store"})
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        """Talk to a page."""
        if self._page is not None:
            await connection.send(json.dumps({"type": "error", "message":
                                              "another page shows this demo; close that one, then reload this page"}))
            return
        self._page = connection
        try:
            await self._send({"type": "agents", "agents": [agent.name for agent in self.agents],
                              "tuning": self._tuning is not None})
            if self._session is None:
                await self._answer({"type": "open", "agent": 0})
            else:  # the page was loaded again
                await self._send({**self._opened, "frame": await self._call(self._session.frame)})
            async for message in connection:
                try:
                    content = json.loads(message)
                    assert isinstance(content, dict)
                except (ValueError, AssertionError, RecursionError):
                    await self._refuse("found a message that is no JSON object")
                    continue
                await self._answer(content)
        except ConnectionClosed:
            pass
        finally:
            self._page = None

    async def _send(self, message: Mapping[str, Any]) -> None:
        if self._page:
            with contextlib.suppress(ConnectionClosed):
                await self._page.send(json.dumps(message))

    async def _refuse(self, message: str) -> None:
        await self._send({"type": "error", "message": message})

    async def _answer(self, message: dict[str, Any]) -> None:
        """Do what the page asks; what is wrong with it is one message on the page."""
        handlers = {"open": self._open, "begin": self._begin, "step": self._step, "act": self._act,
                    "finetune": self._finetune, "cancel": self._cancel}
        kind = message.get("type")
        if not isinstance(kind, str) or kind not in handlers:
            await self._refuse(f"type: found {kind!r:.40}, expected one of {', '.join(handlers)}")
            return
        (error,) = await asyncio.gather(handlers[kind](message), return_exceptions=True)
        if isinstance(error, ValueError | OSError | ModuleNotFoundError | DamagedCheckpointError):
            await self._refuse(str(error))
        elif isinstance(error, Exception):  # of a simulator, which may raise anything; the page stays
            _log.error("%s failed", kind, exc_info=error)
            await self._refuse(f"{kind} failed: {type(error).__name__}: {error}; the terminal shows where")
        elif error is not None:
            raise error

    async def _open(self, message: dict[str, Any]) -> None:
        number = message.get("agent")
        if type(number) is not int or not 0 <= number < len(self.agents):
            raise ValueError(f"agent: found {number!r:.40}, expected 0 to {len(self.agents) - 1}")
        agent = self.agents[number]

        def load() -> Session:
            return Session(TrainedRun.load(agent.checkpoint), agent.environment,
                           self._out / f"demonstrations-{agent.domain}-{number}", domain=agent.domain)

        if self._session:  # first, since some simulators can be there only once
            await self._call(self._session.close)
            self._session = None
        session = self._session = await self._call(load)
        self._opened = {"type": "opened", "agent": number, **session.describe()}
        await self._send({**self._opened, "frame": None})

    def _current(self) -> Session:
        if self._session is None:
            raise ValueError("no agent is open; choose one")
        return self._session

    async def _begin(self, message: dict[str, Any]) -> None:
        task, seed, instruction = (message.get(name) for name in ("task", "seed", "instruction"))
        if not isinstance(task, str) or not isinstance(instruction, str) or type(seed) is not int or not (
                0 <= seed < 2**31):
            raise ValueError(f"begin: found task {task!r:.40}, seed {seed!r:.40} and instruction {instruction!r:.40}, "
                             "expected a text, a whole number from 0 to 2,147,483,647, and a text")
        await self._frame(self._current().begin, task, seed, instruction.strip())

    async def _step(self, message: dict[str, Any]) -> None:
        await self._frame(self._current().agent_step, **self._shown(message))

    async def _act(self, message: dict[str, Any]) -> None:
        await self._frame(self._current().person_step, message.get("action"), **self._shown(message))

    @staticmethod
    def _shown(message: Mapping[str, Any]) -> dict[str, bool]:
        return {name: message.get(name) is True for name in ("attention", "surprise")}

    async def _frame(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        await self._send({"type": "frame", "frame": await self._call(function, *arguments, **options)})

    async def _finetune(self, message: dict[str, Any]) -> None:
        session, steps = self._current(), message.get("steps")
        if self._tuning:
            raise ValueError("fine-tuning: one is running; wait for it or cancel it")
        if type(steps) is not int or not 1 <= steps <= 100_000:
            raise ValueError(f"fine-tuning: found {steps!r:.40} steps, expected 1 to 100,000")
        await self._call(session.store)
        frame = await self._call(session.frame)
        if frame is None or session.demonstrations.path is None:
            raise ValueError("fine-tuning: found no demonstrations of yours; take over and act first")
        agent = self.agents[self._opened["agent"]]
        number = len(list(self._out.glob("finetuned-*"))) + 1
        job = Job(agent.checkpoint, agent.domain, agent.environment, frame["task"],
                  (str(session.demonstrations.path),), str(self._out / f"finetuned-{number}"), steps)
        self._tuning = asyncio.create_task(self._tune(job))

    async def _tune(self, job: Job) -> None:
        """Run a job in a process of its own; its lines and its result go to the page."""
        workdir, process, last = Path(job.workdir), None, ""
        try:
            write_json(workdir / "job.json", dataclasses.asdict(job))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agent_jax.demo.finetune", str(workdir / "job.json"),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                start_new_session=True)
            assert process.stdout is not None
            async for line in process.stdout:
                last = line.decode("utf-8", "replace").strip() or last
                await self._send({"type": "tuning", "line": last})
            if await process.wait():
                raise ValueError(last)
            self.agents += agents_of(job.workdir, job.environment, job.domain)
            await self._send({"type": "agents", "agents": [agent.name for agent in self.agents], "tuning": False,
                              "result": read_json_object(workdir / RESULT_FILE)})
        except (ValueError, OSError, DamagedCheckpointError) as error:
            await self._refuse(f"fine-tuning failed: {error}")
        finally:
            self._tuning = None
            if process and process.returncode is None:  # cancelled; the training is a child of that process
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                await process.wait()
            await self._send({"type": "tuning", "line": ""})

    async def _cancel(self, message: dict[str, Any]) -> None:
        del message
        if self._tuning:
            self._tuning.cancel()
