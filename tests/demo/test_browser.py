"""A person's way through the page, in Chromium."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest

from agent_jax.demo.agents import agents_of
from agent_jax.demo.server import HOST, DemoServer


@pytest.mark.slow
def test_a_person_watches_takes_over_hands_back_and_teaches(workdir: Path, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    server, ready = DemoServer(agents_of(str(workdir)), tmp_path), threading.Event()
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_until_complete, args=[server.run(ready.set)])
    serving.start()
    ready.wait(60)
    seen: list[str] = []
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=[
                "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
            page = browser.new_page(viewport={"width": 1360, "height": 860})
            page.on("console", lambda message: seen.append(message.text))
            page.on("dialog", lambda dialog: seen.append(dialog.message))
            page.on("request", lambda request: seen.append(request.url))
            page.goto(f"http://{HOST}:{server.port}/")
            page.wait_for_selector("#task option", state="attached", timeout=60_000)
            page.select_option("#task", "GoToObj")
            page.fill("#instruction", "go to <b>the</b> ball")
            page.click("text=begin")
            page.wait_for_selector("#now img", timeout=60_000)
            assert page.inner_text("#reads") == "go to <b>the</b> ball"
            for number in range(1, 4):
                page.click("#step")
                page.locator("#history li.agent").nth(number - 1).wait_for(timeout=120_000)
            assert page.locator("#saw img").count() == 1
            assert page.locator("#choices .bar").count() > 1
            page.click("#person")
            for number, key in enumerate(("ArrowLeft", "ArrowRight"), 1):
                page.keyboard.press(key)
                page.locator("#history li.person").nth(number - 1).wait_for(timeout=60_000)
            assert page.locator("#history li.person").all_inner_texts() == ["person: left", "person: right"]
            page.screenshot(path=tmp_path / "demo.png")
            page.click("#person")
            page.click("#step")
            page.locator("#history li.agent").nth(3).wait_for(timeout=60_000)
            page.fill("#steps", "2")
            page.click("#learn")
            page.locator("#result", has_text="before").wait_for(timeout=300_000)
            assert page.locator("#agent option").count() == 2
            browser.close()
    finally:
        loop.call_soon_threadsafe(server.stop)
        serving.join(60)
        loop.close()
    assert not [text for text in seen if not text.startswith((f"http://{HOST}:{server.port}/", "data:"))]
    (result,) = tmp_path.glob("*/finetuned-1/demo.json")
    assert json.loads(result.read_text())["steps"] == 2
    assert {path.name for path in tmp_path.glob("*/demonstrations-*/*")} == {"0001"}
