"""The benchmark of attention's kernels runs from end to end, and compares what computes the same."""

import json
import sys

import attention_kernels  # of benchmarks/
import jax
import numpy as np


def test_every_kernel_of_this_machine_is_timed_beside_ours(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention_kernels", "--config", str(root / "configs/babyai.py:smoke"), "--rows",
                                      "1", "--slots", "32", "--images", "2", "--turns", "1", "--json",
                                      str(tmp_path / "found.json")])
    attention_kernels.main()
    found = json.loads((tmp_path / "found.json").read_text())["kernels"]
    assert list(found) == ["images", "rows"]
    assert all(set(part) == {"shape", "xla", "library"} for part in found.values())
    assert found["rows"]["xla"]["ratio"] == 1.0
    assert found["rows"]["library"]["ms"] > 0
    assert "of xla" in capsys.readouterr().out


def test_the_kernels_that_are_compared_compute_the_same():
    segment_BS = np.asarray([[1] * 20 + [2] * 9 + [0] * 3], np.int32)
    for pattern, last in (("among", None), ("causally", segment_BS)):
        runs = [attention_kernels.compiled(getattr(patterns, pattern), (1, 32, 2, 8), "float32", last)
                for patterns in attention_kernels.kernels("float32").values()]
        one, other = (jax.device_get(run(*given)) for run, given in runs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)
