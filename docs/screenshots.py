"""Screenshots of the pages of agent_jax.view, taken in headless Chromium without a network.

    python docs/screenshots.py [--workdir RUN] [--domain NAME] [--data DIR] [--chromium PATH] [--out docs/pictures]

Without --workdir it first takes the four steps of configs/babyai.py:smoke in a temporary directory, so that CI can run
it (it needs the extras `babyai` and `browser`, and Chromium). It fails if a page logs an error or asks for anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from agent_jax.view.__main__ import main as view

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]


def make_pages(workdir: Path, domain: str, data: str, folder: Path) -> dict[str, Path]:
    """The pages of a run by the name of their picture."""
    chosen, of_data = ["--domain", domain] if domain else [], ["--data", data] if data else []
    commands = {"run": ["run", str(workdir)], "row": ["row", str(workdir)],
                "attention": ["attention", str(workdir), "--episode", "3", *chosen, *of_data],
                "reconstruction": ["reconstruction", str(workdir), *chosen]}
    pages = {name: folder / f"{name}.html" for name in commands}
    for name, command in commands.items():
        if status := view([*command, "--out", str(pages[name])]):
            sys.exit(status)
    return pages


def main() -> None:
    """Make the pages and take their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--domain", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        folder, workdir = Path(directory), options.workdir
        if workdir is None:
            workdir = folder / "run"
            subprocess.run([sys.executable, "-m", "agent_jax.train", "--config", str(ROOT / "configs/babyai.py:smoke"),
                            "--workdir", str(workdir)], check=True)
        pages = make_pages(workdir, options.domain, options.data, folder)
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        wrong: list[str] = []
        for name, path in pages.items():
            page = browser.new_page(viewport={"width": 1240, "height": 900})
            page.on("console", lambda message, name=name: wrong.append(f"{name}: {message.text}"))
            page.on("request", lambda request, name=name: request.url.startswith(("file:", "data:")) or wrong.append(
                f"{name}: asks for {request.url}"))
            page.goto(path.as_uri())
            options.out.mkdir(parents=True, exist_ok=True)
            target = options.out / f"view_{name}.png"
            if name == "run":  # the whole page is long
                page.locator("section", has=page.get_by_role("heading", name="Losses", exact=True)).screenshot(
                    path=target)
            else:
                page.screenshot(path=target, full_page=True)
        browser.close()
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
