"""Fixtures of the demo's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import smoke_run


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run in BabyAI."""
    return smoke_run(tmp_path_factory.getbasetemp()).workdir
