"""Messages and pages name one way to install an extra, and only extras that there are."""

from __future__ import annotations

import re
from pathlib import Path

from agent_jax.runtime.extras import install

PLACES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "agent_jax/**/*.py", "benchmarks/*.py", "configs/*.py",
          "launch/*", "tests/test_*.py")


def texts(root: Path) -> dict[str, str]:
    files = [path for place in PLACES for path in root.glob(place) if path.is_file()]
    return {str(path.relative_to(root)): path.read_text() for path in files if path.name != Path(__file__).name}


def test_an_extra_is_installed_from_the_checkout() -> None:
    assert install("babyai") == 'pip install -e ".[babyai]"'


def test_nothing_names_a_package_on_a_registry(root: Path) -> None:
    published = re.compile(r"pip install (?!-)\S*agent_jax")
    assert {name: found for name, text in texts(root).items() if (found := published.findall(text))} == {}


def test_every_extra_that_is_named_is_one(root: Path) -> None:
    declared = (root / "setup.py").read_text().partition("extras_require={")[2]
    extras = set(re.findall(r'^        "(\w+)":', declared, re.MULTILINE))
    named: set[str] = set()
    for text in texts(root).values():
        named |= {extra for extras_of in re.findall(r"""-e\s*["']\.\[([a-z,]+)\]["']""", text)
                  for extra in extras_of.split(",")}
        named |= set(re.findall(r"""\binstall\(["'](\w+)["']\)""", text))
    assert named >= {"babyai", "serve", "data", "torch", "gcs", "evaluate", "benchmarks"}
    assert named - extras == set()
