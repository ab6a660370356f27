"""The documents: links, paths and commands in them exist; guides hold no measurements."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_jax.data.prepare.sources import CLASSES
from agent_jax.envs import NAMES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"),
                *(ROOT / "examples").glob("*.md")])
CURRENT = [page for page in PAGES  # others are records
           if page.name != "CHANGELOG.md" and "results" not in page.relative_to(ROOT).parts]
FOLDERS = "agent_jax|benchmarks|configs|docs|examples|launch|tests"
EXAMPLES = ("my_", "MACHINE", "NAME", "KIND")  # of a path that the reader makes


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        target, _, anchor = next(filter(None, link)).partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{name(page)}: {target} has no heading #{anchor}"


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_every_path_and_command_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w/?)", text):
        if not any(part in path for part in EXAMPLES):
            assert (ROOT / path).exists(), f"{name(page)}: {path} does not exist"
    for module in re.findall(r"(?:-m|from|import) (agent_jax(?:\.\w+)*)", text):
        place = ROOT.joinpath(*module.split("."))
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"{name(page)}: no module {module}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=name)
def test_documents_hold_no_measurement(page: Path) -> None:
    """Dates, commits and processors stand in benchmarks/results, where the measurements are."""
    found = re.findall(r"\b20\d\d-\d\d-\d\d\b|\bEPYC\b|\bXeon\b|\bcommit [0-9a-f]{7}", page.read_text(encoding="utf-8"))
    assert not found, f"{name(page)}: {found}; move it to benchmarks/results"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        path = str(page.relative_to(ROOT / "docs"))
        assert path == "README.md" or f"]({path})" in index, f"docs/README.md has no link to {path}"


def test_every_source_is_documented() -> None:
    guides = ROOT / "docs" / "guides"
    text = "".join((guides / page).read_text(encoding="utf-8") for page in ("data.md", "data_sources.md"))
    missing = [kind for kind in CLASSES if f"--source {kind} " not in text]
    assert not missing, f"docs/guides/data_sources.md has no command for {missing}"


def test_every_source_is_fuzzed() -> None:
    readers = (ROOT / "tests" / "fuzz" / "readers.py").read_text(encoding="utf-8")
    missing = [kind for kind in CLASSES if f'"{kind}"' not in readers]
    assert not missing, f"tests/fuzz/readers.py has no reader for {missing}"


def test_every_simulator_is_documented() -> None:
    text = (ROOT / "docs" / "guides" / "environments.md").read_text(encoding="utf-8")
    missing = [environment for environment in NAMES if f"| `{environment}` |" not in text]
    assert not missing, f"docs/guides/environments.md has no row for {missing}"


def test_every_config_is_documented() -> None:
    text = (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "configs").rglob("*.py")
               if f"`configs/{path.relative_to(ROOT / 'configs')}`" not in text]
    assert not missing, f"docs/guides/train.md has no row for {missing}"


def test_drawings_are_those_of_the_script(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "docs" / "drawings.py"), "--out", str(tmp_path)], check=True)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert drawn
    for path in drawn:
        assert path.read_bytes() == (ROOT / "docs" / "pictures" / path.name).read_bytes(), (
            f"{path.name}: run python docs/drawings.py")


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"- {name(page)}\n" in navigation, f"docs/site/mkdocs.yml: nav has no {name(page)}"


@pytest.mark.slow
def test_the_script_takes_every_picture(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    subprocess.run([sys.executable, str(ROOT / "docs" / "screenshots.py"), "--out", str(tmp_path), "--chromium",
                    str(shutil.which("chromium"))], check=True, cwd=tmp_path)
    taken = {path.name for path in tmp_path.glob("*.png")}
    assert {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")} <= taken
