"""A folder for onnxruntime acts, answers and classifies as its checkpoint does, and appears only if it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported_agents import KINDS, checkpoint_of, exported_onnx, images
from small_runs import listing

from agent_jax.convert.__main__ import main
from agent_jax.convert.exported.policy import ExportedPolicy
from agent_jax.convert.onnx import onnx_agent
from agent_jax.convert.onnx.folder_policy import FolderPolicy
from agent_jax.convert.onnx.graphs import EncoderGraph, LanguageGraph
from agent_jax.convert.pytorch import torch_agent
from agent_jax.convert.pytorch.folder import agent_json, tokenizer_json
from agent_jax.convert.to_onnx import export, in_pytorch
from agent_jax.policy import Policy


class EagerSession:
    """A graph in place of an onnxruntime session, without the export, which takes time."""

    def __init__(self, graph: torch.nn.Module) -> None:
        self._graph = graph

    def run(self, names: list[str] | None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        given: dict[str, Any] = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        past = [given.pop(name) for name in [*given] if name.startswith("past_")]
        with torch.inference_mode():
            outputs = [output.numpy() for output in self._graph(**given, **({"past": past} if past else {}))]
        return outputs if names is None else [outputs[["visual_BFVD", "probability_BY"].index(names[0])]]


def eager_policy(folder: Path, agent: torch_agent.Agent, domain: str) -> onnx_agent.Policy:
    policy = object.__new__(onnx_agent.Policy)
    ExportedPolicy.__init__(policy, folder, agent.description, domain=domain)
    language = agent.config["model"]["language"]
    policy._encoder, policy._language = EagerSession(EncoderGraph(agent)), EagerSession(LanguageGraph(agent.language))
    policy._cached = [f"past_{layer}_{part}" for layer in range(language["depth"]) for part in "kv"]
    policy._heads, policy._width = language["heads"], language["width"]
    policy._wide, policy._encoder_inputs = policy._width // policy._heads, {"frames_BFHWC", "clip_BF"}
    return policy


@pytest.mark.parametrize("chunk", [onnx_agent.CHUNK, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graphs_with_their_cache_compute_what_pytorch_does(
        base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chunk: int):
    monkeypatch.setattr(onnx_agent, "CHUNK", chunk)
    made = checkpoint_of(base, kind)
    description = agent_json(made.config, made.domains, {})
    (tmp_path / "language").mkdir()
    (tmp_path / "agent.json").write_text(description)
    (tmp_path / "language" / "tokenizer.json").write_text(tokenizer_json(made.vocabulary.text))
    agent = in_pytorch(made.average, made.config, json.loads(description))
    for name, domain in made.domains.items():
        plain, graphs = torch_agent.Policy(tmp_path, domain=name, agent=agent), eager_policy(tmp_path, agent, name)
        if domain.layout == "answer":
            clips = [images(made, 2), images(made, 1, 1)]
            one, other = (policy.say(clips, ["a", "what"]) for policy in (plain, graphs))
            assert [text.ids for text in one] == [text.ids for text in other]
        elif domain.layout == "label":
            one, other = (policy.classify([images(made, 2)]) for policy in (plain, graphs))
            np.testing.assert_allclose(one[0].probabilities, other[0].probabilities, atol=1e-5)
        for flush_every in (0, domain.window) if domain.spec else ():
            plain.flush_every = graphs.flush_every = flush_every
            plain.reset([0, 1])
            graphs.reset([0, 1])
            assert plain.domain.actions is not None
            state = plain.domain.state.decode(plain.domain.state.first()) if plain.domain.state else None
            for step in range(domain.window + 2):
                robots = [0, 1] if step else [0]  # one begins later, and reads another text after a while
                texts = ["go", "push" if step < 3 else "stop"]
                seen = [plain.prepare(image, text, state)
                        for image, text in zip(images(made, len(robots), step), texts, strict=False)]
                walk = plain.domain.actions.first() * plain.domain.actions_per_image
                for one, other in zip(plain.follow(seen, robots, [walk] * len(robots)),
                                      graphs.follow(seen, robots, [walk] * len(robots)), strict=True):
                    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def plain(actions: Any) -> str:
    return str([{key: np.asarray(value).tolist() for key, value in sorted(action.items())} for action in actions])


@pytest.mark.slow
@pytest.mark.parametrize("history", ["sliding", "flushed"])
def test_it_acts_as_the_checkpoint_with_states_and_with_buttons(base: Path, history: Any):
    made, folder = exported_onnx(base, "images")
    for name in ("table", "minecraft"):
        ours = Policy.load(made.path, domain=name, history=history)
        theirs = onnx_agent.Policy(folder, domain=name, history=history)
        state = theirs.domain.state.decode(theirs.domain.state.first()) if theirs.domain.state else None
        for step in range(made.domains[name].window + 2):
            # Two robots, of which one begins later and reads another text after a while.
            robots = ["a", "b"] if step else ["a"]
            texts = ["go", "push" if step < 3 else "stop"][: len(robots)]
            given = (images(made, len(robots), step), texts, robots, [state] * len(robots) if state else None)
            assert plain(theirs.act(*given)) == plain(ours.act(*given)), (name, step)
        theirs.forget(["a", "b"])


@pytest.mark.slow
def test_clips_texts_and_classes_are_those_of_the_checkpoint(base: Path):
    made, folder = exported_onnx(base, "clips")
    ours, theirs = Policy.load(made.path), onnx_agent.Policy(folder)
    for step in range(made.domains["edge"].window + 1):
        given = (images(made, 2, step), ["go", "push"], [0, 1])
        assert plain(theirs.act(*given)) == plain(ours.act(*given))
    made, folder = exported_onnx(base, "texts")
    ours, theirs = Policy.load(made.path), onnx_agent.Policy(folder)
    clips = [images(made, 2), images(made, 1, 1)]
    for one, other in zip(ours.say(clips, ["a", "what"]), theirs.say(clips, ["a", "what"]), strict=True):
        assert one.ids.tolist() == other.ids
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
    for one, other in zip(ours.classify(clips), theirs.classify(clips), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)


@pytest.mark.slow
def test_given_actions_have_the_logits_of_the_checkpoint(base: Path):
    made, folder = exported_onnx(base, "images")
    ours, theirs = Policy.load(made.path, domain="minecraft"), FolderPolicy(folder, domain="minecraft")
    for step in range(3):
        [image] = images(made, 1, step)
        found = theirs.follow([theirs.prepare(image, "go")], [0], [theirs.exported.domain.actions.first()])
        expected = ours.follow([ours.prepare(image, "go")], [0], [np.array(theirs.exported.domain.actions.first())])
        np.testing.assert_allclose(found[0], expected[0], atol=1e-4)


@pytest.mark.slow
def test_a_failed_call_changes_no_flushed_episode(base: Path, monkeypatch: pytest.MonkeyPatch):
    made, folder = exported_onnx(base, "images")
    policies = [onnx_agent.Policy(folder, domain="minecraft", history="flushed") for _ in range(2)]
    for step in range(3):
        if step == 1:
            with monkeypatch.context() as patch:
                patch.setattr(policies[0], "_choose", lambda logits: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    policies[0].act(images(made, 1, 9), ["go"], [0])
        one, other = (policy.act(images(made, 1, step), ["go"], [0]) for policy in policies)
        assert plain(one) == plain(other)


def test_files_that_are_missing_or_changed_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        onnx_agent.Policy(tmp_path)
    (tmp_path / "agent.json").write_text("{}")
    manifest = {"format": 1, "precision": "f32", "opset": 21, "onnxruntime": "1.18",
                "files": {"agent.json": onnx_agent.file_hash(tmp_path / "agent.json")}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert onnx_agent.read_manifest(tmp_path) == manifest
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.9.0")
        with pytest.raises(ValueError, match=r"onnxruntime 1\.9\.0, expected 1\.18 or later"):
            onnx_agent.Policy(tmp_path)
    (tmp_path / "agent.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"agent\.json: its SHA-256"):
        onnx_agent.Policy(tmp_path)
    (tmp_path / "agent.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"agent\.json is missing"):
        onnx_agent.Policy(tmp_path)


@pytest.mark.slow
def test_wrong_observations_and_histories_are_refused_by_name(base: Path):
    made, folder = exported_onnx(base, "images")
    table = onnx_agent.Policy(folder, domain="table")
    [image] = images(made, 1)
    with pytest.raises(ValueError, match="'table' needs a state"):
        table.act([image], ["go"], [0])
    with pytest.raises(ValueError, match="expected one of each camera: rgb"):
        table.act([{"wrist": image}], ["go"], [0], [{}])
    with pytest.raises(ValueError, match="flush_every=99"):
        onnx_agent.Policy(folder, domain="table", history="flushed", flush_every=99)


def test_an_unknown_precision_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["to-onnx", str(tmp_path), str(tmp_path / "out"), "--precision", "int2"])
    assert "'int2' (choose from" in capsys.readouterr().err
    with pytest.raises(ValueError, match="precision='int2': expected one of f32, f16, int8, int4"):
        export(tmp_path, tmp_path / "out", precision="int2")
    assert not listing(tmp_path)


@pytest.mark.slow
def test_nothing_is_written_without_proof(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = checkpoint_of(base, "images")
    # The domains have no recorded data and no simulator.
    assert main(["to-onnx", str(made.path), str(tmp_path / "out"), "--precision", "int8", "--windows", "0"]) == 1
    assert "domain 'table': no episode" in capsys.readouterr().err
    assert not listing(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "correlation"), [("int8", 0.995), ("int4", 0.9)])
def test_smaller_precisions_are_smaller_and_act(base: Path, tmp_path: Path, precision: str, correlation: float):
    made, exact = exported_onnx(base, "images")
    out = tmp_path / precision
    line = ["to-onnx", str(made.path), str(out), "--precision", precision, "--windows", "0", "--allow_loss"]
    assert main([*line, "--episodes", "0"]) == 0
    assert not json.loads((out / "parity.json").read_text())["passed"]
    size, whole = (sum(file.stat().st_size for file in folder.glob("*.data")) for folder in (out, exact))
    assert size < whole
    found = []
    for folder in (out, exact):
        policy = onnx_agent.Policy(folder, domain="minecraft")
        codec = policy.domain.actions
        assert codec is not None
        seen = [policy.prepare(image, "go") for image in images(made, 4)]
        logits = np.concatenate(policy.follow(seen, range(4), [codec.first()] * 4))
        found.append(logits[np.isfinite(logits)])
    assert np.corrcoef(found)[0, 1] > correlation


BLOCKED = "import sys\nfor name in ('jax', 'jaxlib', 'flax', 'torch', 'transformers'): sys.modules[name] = None\n"


@pytest.mark.slow
def test_the_file_runs_alone(base: Path, tmp_path: Path):
    _, folder = exported_onnx(base, "images")
    code = BLOCKED + ("sys.modules['agent_jax'] = None\n"
                      f"sys.argv = ['onnx_agent.py', {str(folder)!r}]\n"
                      "import runpy; runpy.run_path(sys.argv[1] + '/onnx_agent.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "minecraft: an action [{" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "domain"), [("images", "minecraft"), ("texts", "caption")])
def test_the_server_serves_a_folder_without_jax_and_torch(base: Path, tmp_path: Path, kind: str, domain: str):
    from agent_jax.client import BadRequestError, Client

    made, folder = exported_onnx(base, kind)
    policy, [image] = onnx_agent.Policy(folder, domain=domain), images(made, 1)
    line = ["--folder", str(folder), "--engine", "onnx", "--domain", domain, "--port", "0"]
    code = BLOCKED + f"from agent_jax.serve.__main__ import main\nsys.exit(main({line!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stdout is not None
            ready = next(text for text in server.stdout if text.startswith("ready"))
            with Client("ws://" + ready.split("ws://")[1].split(",")[0]) as client:
                assert client.metadata["versions"]["onnxruntime"] == onnxruntime.__version__
                if kind == "images":
                    assert plain([client.act(image, "go")]) == plain(policy.act([image], ["go"], [0]))
                    return
                for clip, sampling in ((image, {}), ([image, image[::-1].copy()], {"temperature": 1.0, "seed": 3})):
                    found, [expected] = client.say(clip, "what", **sampling), policy.say([clip], ["what"], **sampling)
                    assert (found["text"], list(found["ids"])) == (expected.text, expected.ids)
                    assert found["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
                with pytest.raises(BadRequestError, match="'caption': found a clip of 9 images, expected 1 to"):
                    client.say([image] * 9, "what")
                with pytest.raises(BadRequestError, match="layout 'answer', which predicts no actions"):
                    client.act(image, "go")
        finally:
            server.terminate()
