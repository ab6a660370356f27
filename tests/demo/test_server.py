"""The page's server: one page, of this machine, and whatever it sends."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agent_jax.demo.__main__ import main
from agent_jax.demo.agents import agents_of
from agent_jax.demo.server import DemoServer


def with_server(workdir: Path, out: Path, talk: Callable[[DemoServer], Awaitable[None]]) -> DemoServer:
    server = DemoServer(agents_of(str(workdir)), out)

    async def run() -> None:
        ready = asyncio.Event()
        serving = asyncio.create_task(server.run(ready.set))
        await ready.wait()
        try:
            await talk(server)
        finally:
            server.stop()
            await serving

    asyncio.run(run())
    return server


async def ask(page: Any, **message: Any) -> dict[str, Any]:
    await page.send(json.dumps(message))
    return json.loads(await page.recv())


def test_a_page_acts_and_wrong_messages_are_one_message_each(workdir: Path, tmp_path: Path):
    async def talk(server: DemoServer) -> None:
        address = f"ws://127.0.0.1:{server.port}/session"
        async with connect(address) as page:
            assert json.loads(await page.recv())["type"] == "agents"
            opened = json.loads(await page.recv())
            assert opened["by_key"]
            assert "GoToObj" in opened["tasks"]
            for wrong in ({"type": "fly"}, {"type": "open", "agent": 7}, {"type": "step"},
                          {"type": "begin", "task": "GoToObj", "seed": -1, "instruction": ""},
                          {"type": "begin", "task": "GoToMoon", "seed": 1, "instruction": ""},
                          {"type": "finetune", "steps": 1}, {"type": "finetune", "steps": "many"}):
                answer = await ask(page, **wrong)
                assert answer["type"] == "error", wrong
                assert answer["message"]
            await page.send("{")
            assert "no JSON" in json.loads(await page.recv())["message"]
            frame = await ask(page, type="begin", task="GoToObj", seed=5, instruction="")
            assert frame["frame"]["step"] == 0
            frame = await ask(page, type="act", action={"action": 1}, attention=True)
            assert frame["frame"]["seen"]["who"] == "person"
            async with connect(address) as second:
                assert "another page" in json.loads(await second.recv())["message"]
            assert (await ask(page, type="step"))["frame"]["step"] == 2
        async with connect(address) as again:  # the page was loaded again: the episode goes on
            await again.recv()
            assert json.loads(await again.recv())["frame"]["step"] == 2

    with_server(workdir, tmp_path, talk)
    (store,) = tmp_path.glob("*/demonstrations-babyai-0/0001")  # stored at the end
    assert (store / "dataset_info.json").is_file()


def test_foreign_pages_and_names_are_refused(workdir: Path, tmp_path: Path):
    async def talk(server: DemoServer) -> None:
        address = f"127.0.0.1:{server.port}"
        for headers in ({"Origin": "http://example.org"}, {"Origin": "null"}):
            with pytest.raises(InvalidStatus, match="403"):
                async with connect(f"ws://{address}/session", additional_headers=headers):
                    pass

        def get(path: str, **headers: str) -> tuple[int, str]:
            request = urllib.request.Request(f"http://{address}{path}", headers=headers)
            try:
                with urllib.request.urlopen(request) as found:
                    return found.status, found.headers["Content-Security-Policy"]
            except urllib.error.HTTPError as error:
                return error.code, ""

        for path in ("/", "/page.js", "/page.css"):
            status, policy = await asyncio.to_thread(get, path)
            assert status == 200
            assert "default-src 'none'" in policy
        assert (await asyncio.to_thread(get, "/../server.py"))[0] == 404
        assert (await asyncio.to_thread(lambda: get("/", Host="example.org")))[0] == 403

    with_server(workdir, tmp_path, talk)


def test_a_port_in_use_and_a_wrong_checkpoint_are_one_line(workdir: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]):
    assert main(["--checkpoint", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "none" in capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--checkpoint", str(workdir), "--port", str(port), "--out", str(tmp_path)]) == 2
        assert f"--port={port} may be in use" in capsys.readouterr().err
