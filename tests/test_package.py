"""What `agent_jax` itself names, and when it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agent_jax


def test_importing_the_package_does_not_import_jax() -> None:
    code = "import sys, agent_jax; print(agent_jax.__version__, 'jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [agent_jax.__version__, "False", "False"]


def test_policy_and_presets_are_imported_when_they_are_named() -> None:
    from agent_jax import Policy, presets

    assert Policy.__module__ == "agent_jax.policy.policy"
    assert presets.__name__ == "agent_jax.config.presets"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'agent_jax' has no attribute 'Polisy'"):
        agent_jax.Polisy  # noqa: B018
