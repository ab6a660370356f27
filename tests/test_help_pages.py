"""The pages that errors name exist, in a checkout and in a wheel."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent_jax import help_pages
from agent_jax.help_pages import help_page

ROOT = Path(__file__).resolve().parent.parent


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ +(.+?) *$", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M)


def named_pages() -> dict[str, list[ast.expr]]:
    """The arguments of each call of `help_page` in the package, by the place of the call."""
    return {f"{path.relative_to(ROOT)}:{node.lineno}": node.args
            for path in sorted((ROOT / "agent_jax").rglob("*.py"))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "help_page"}


def test_every_page_and_heading_that_an_error_names_exists() -> None:
    found = named_pages()
    assert len(found) > 20
    for place, (page, heading) in found.items():
        name = ast.literal_eval(page)
        if ast.unparse(heading) == "self.detector":  # the headings of detectors have a test of their own
            assert name == "guides/doctor.md"
            continue
        assert ast.literal_eval(heading) in headings(name), f"{place}: docs/{name} has no such heading"


def test_a_page_is_the_file_of_the_checkout() -> None:
    page = ROOT / "docs" / "guides" / "train.md"
    assert help_page("guides/train.md", "Configs") == f'. See {page}, "Configs"'


def test_without_pages_a_message_names_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(help_pages, "PAGES", tmp_path)
    assert help_page("guides/train.md", "Configs") == ""


@pytest.mark.slow
def test_a_wheel_has_the_pages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("agent_jax", "docs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir",
                    str(tmp_path), str(source)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        for page, _ in named_pages().values():
            name = ast.literal_eval(page)
            assert content.read(f"agent_jax/docs/{name}") == (ROOT / "docs" / name).read_bytes()
