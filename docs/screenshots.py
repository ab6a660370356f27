"""Pictures of the pages: those of agent_jax.view, the demo, and a contact sheet of the data doctor.

    python docs/screenshots.py [--workdir RUN] [--domain NAME] [--data DIR] [--only NAME ...] [--out docs/pictures]

Pages are drawn by headless Chromium without a network. Without --workdir the script first takes the four steps of
configs/babyai.py:smoke in a temporary directory, so that CI can run it (it needs the extras `demo` and `browser`, and
Chromium). The demo shows the agent that comes with the package. The script fails if a page logs an error or asks for
anything but itself.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, Request, sync_playwright

from agent_jax.data.store.writer import episode_features, write_store
from agent_jax.doctor.__main__ import main as doctor
from agent_jax.envs import load
from agent_jax.view.__main__ import main as view

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
VIEWS = ("run", "row", "attention", "reconstruction")
PICTURES = (*VIEWS, "demo", "doctor")


def view_pages(names: list[str], workdir: Path, domain: str, data: str, folder: Path) -> dict[str, Path]:
    """The pages of a run by the name of their picture."""
    chosen, of_data = ["--domain", domain] if domain else [], ["--data", data] if data else []
    commands = {"run": ["run", str(workdir)], "row": ["row", str(workdir)],
                "attention": ["attention", str(workdir), "--episode", "3", *chosen, *of_data],
                "reconstruction": ["reconstruction", str(workdir), *chosen]}
    pages = {name: folder / f"{name}.html" for name in names}
    for name, page in pages.items():
        if status := view([*commands[name], "--out", str(page)]):
            sys.exit(status)
    return pages


def new_page(browser: Browser, name: str, address: str, wrong: list[str]) -> Page:
    """The page at `address`; what it logs, and asks for elsewhere, is added to `wrong`."""
    page = browser.new_page(viewport={"width": 1240, "height": 900})

    def asks(request: Request) -> None:
        if not request.url.startswith((address, "data:")):
            wrong.append(f"{name}: asks for {request.url}")

    page.on("console", lambda message: wrong.append(f"{name}: {message.text}"))
    page.on("request", asks)
    page.goto(address)
    return page


def picture_view(browser: Browser, name: str, path: Path, target: Path, wrong: list[str]) -> None:
    """The picture of one page of `agent_jax.view`; of a run, whose page is long, its losses."""
    page = new_page(browser, name, path.as_uri(), wrong)
    if name == "run":
        page.locator("section", has=page.get_by_role("heading", name="Losses", exact=True)).screenshot(path=target)
    else:
        page.screenshot(path=target, full_page=True)


def picture_demo(browser: Browser, folder: Path, target: Path, wrong: list[str]) -> None:
    """The demo after three steps of the agent and one of a person."""
    server = subprocess.Popen([sys.executable, "-m", "agent_jax.demo", "--port", "0", "--out", str(folder / "demo")],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[2]
        page = new_page(browser, "demo", address, wrong)
        page.wait_for_selector("#task option", state="attached", timeout=120_000)
        page.select_option("#task", "GoToLocal")
        page.click("text=begin")
        page.wait_for_selector("#now img", timeout=120_000)
        for number in range(3):
            page.click("#step")
            page.locator("#history li.agent").nth(number).wait_for(timeout=120_000)
        page.click("#person")
        page.keyboard.press("ArrowUp")
        page.locator("#history li.person").wait_for(timeout=60_000)
        page.screenshot(path=target)
        page.close()
    finally:
        server.terminate()
        server.wait(60)


def faulty_episodes(count: int, black: set[int]) -> Iterator[dict[str, Any]]:
    """Episodes of BabyAI's bot; in some the camera shows nothing after the second step."""
    babyai = load("babyai")
    environment = babyai.make("GoToLocal", image_size=56)
    for number in range(count):
        observation, _ = environment.reset(seed=number)
        expert, steps, ended = babyai.Expert(environment), [], False
        while not ended:
            action = expert.act()
            image = np.asarray(observation["rgb"]) * np.uint8(number not in black or len(steps) < 2)
            steps.append({"observation": {"rgb": image}, **action, "action_weight": 1.0, "reward": 0.0,
                          "is_first": not steps, "is_last": False, "is_terminal": False})
            observation, _, terminated, truncated, _ = environment.step(action)
            ended = terminated or truncated
        steps[-1].update(is_last=True, is_terminal=True)
        yield {"episode_id": f"{number}", "recording_id": f"{number}", "start": 0,
               "instruction": environment.instruction, "steps": steps}


def picture_doctor(folder: Path, target: Path) -> None:
    """The contact sheet of what the data doctor finds in a set in which a camera failed."""
    actions = {key: (shape, dtype) for key, (shape, dtype) in load("babyai").ACTION_SPEC.fields.items()}
    write_store(folder / "faulty", "faulty", episode_features((56, 56, 3), actions),
                {"train": faulty_episodes(12, {2, 5, 7})},
                metadata={"made_by": "docs/screenshots.py", "action_spec": load("babyai").ACTION_SPEC.to_dict()})
    doctor(["data", str(folder / "faulty"), "--out", str(folder / "sheets")])
    shutil.copyfile(folder / "sheets" / "blank_frames.png", target)


def main() -> None:
    """Make the pages and take their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--domain", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    views = [name for name in VIEWS if name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        folder, workdir = Path(directory), options.workdir
        if views and workdir is None:
            workdir = folder / "run"
            subprocess.run([sys.executable, "-m", "agent_jax.train", "--config", str(ROOT / "configs/babyai.py:smoke"),
                            "--workdir", str(workdir)], check=True)
        pages = view_pages(views, workdir, options.domain, options.data, folder)
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        for name, path in pages.items():
            picture_view(browser, name, path, options.out / f"view_{name}.png", wrong)
        if "demo" in options.only:
            picture_demo(browser, folder, options.out / "demo.png", wrong)
        browser.close()
        if "doctor" in options.only:
            picture_doctor(folder, options.out / "doctor_data.png")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
