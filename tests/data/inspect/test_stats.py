from __future__ import annotations

import json

import numpy as np
from data_stores import language_table_store

from agent_jax.data.__main__ import main
from agent_jax.data.inspect.stats import stats


def test_statistics_are_those_of_numpy_over_all_steps(tmp_path):
    store = language_table_store(tmp_path / "set")
    figures = stats(store.directory)
    train = figures["splits"]["train"]
    assert (train["records"], train["steps"]) == (3, 17)
    assert train["bytes"] == store.files("train")[0].stat().st_size
    values = np.concatenate([episode.values("steps/action", 0, 99) for episode in store.split("train")])
    found = train["fields"]["steps/action"]
    assert found["shape"] == [2]
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(np.asarray(values, np.float64), name)(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["quantiles"]["0.25"], np.quantile(values, 0.25, axis=0), rtol=1e-6)
    assert "steps/observation/instruction" not in train["fields"]  # 512 codes
    assert "steps/observation/rgb" not in train["fields"]


def test_the_command_prints_json(tmp_path, capsys):
    store = language_table_store(tmp_path / "set")
    assert main(["stats", str(store.directory)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["name"] == "table"
    assert main(["stats", str(store.directory), "--json", str(tmp_path / "stats.json")]) == 0
    assert json.loads((tmp_path / "stats.json").read_text()) == printed
