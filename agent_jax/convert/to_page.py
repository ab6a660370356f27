"""Writes a BabyAI agent of a folder for onnxruntime as one HTML file, in which it acts without server and network.

The file has the folder's graphs, the script and the wasm of npm's onnxruntime-web, rooms and tiles of the simulator
(envs/babyai_rooms.py), and the rules, the policy and the controls in JavaScript (onnx/page). Large parts are gzipped.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_jax.actions import BABYAI, ActionSpec
from agent_jax.convert.exported.domain import Domain
from agent_jax.convert.onnx.onnx_agent import read_manifest, release
from agent_jax.json_files import check_json_path, read_json_object, write_text

LEVELS = ("GoToLocal", "GoToLocalS8N4", "GoToLocalS6N2", "GoToRedBallGrey", "GoToObj")
VIEW = 7  # cells a side
ROOM_TILE = 32  # pixels of a cell in the drawing of the room
RUNTIME = "onnxruntime-web"  # the npm package
_RUNTIME_FILES = {"runtime.mjs": "dist/ort.wasm.bundle.min.mjs", "runtime.wasm": "dist/ort-wasm-simd-threaded.wasm"}
_ASSETS = Path(__file__).parent / "onnx" / "page"


def write_page(folder: str | Path, out: str | Path, runtime: str | Path, *, domain: str = "",
               levels: Sequence[str] = (), rooms: int = 5) -> str:
    """Write the page.

    Args:
        folder: of `to-onnx`.
        out: the file, NAME.html.
        runtime: the unpacked npm package `onnxruntime-web`.
        domain: to act in; may be empty if there is only one with actions.
        levels: of BabyAI, of one room without doors; (): `LEVELS`.
        rooms: of each level, on the first seeds of the run's evaluation, which no demonstration has.

    Returns:
        A line for the terminal.

    Raises:
        FileNotFoundError: a file of the folder or of the runtime is missing.
        ValueError: a changed file, an agent that the page cannot run, an unknown level, or a bad `out` or `rooms`.
        ModuleNotFoundError: minigrid is not installed.
    """
    folder, out = Path(folder), check_json_path(str(out))
    if out.suffix != ".html":
        raise ValueError(f"{out}: expected a name that ends in .html")
    if rooms < 1:
        raise ValueError(f"--rooms={rooms}: expected 1 or more")
    manifest = read_manifest(folder)
    description = read_json_object(folder / "agent.json")
    chosen = Domain.load(folder, domain, "actions")
    _check_fits(chosen, description)
    version, files = _runtime_files(Path(runtime), manifest)
    files |= {path.name: path for path in sorted(folder.glob("*.onnx*"))}

    from agent_jax.envs.babyai_rooms import rooms as babyai_rooms

    first, levels = description["config"]["closed_loop"]["seed"], levels or LEVELS
    tile = chosen.image_size // VIEW
    world = babyai_rooms(levels, range(first, first + rooms), sorted({tile, ROOM_TILE}))
    world["tiles"] = {size: _packed(tiles.tobytes()) for size, tiles in world["tiles"].items()}
    for instruction in (one for room in world["rooms"] for one in room["instructions"]):
        instruction["ids"] = chosen.text_ids(instruction["text"])
    data = {"world": world, "domain": _domain_json(chosen, description),
            "files": {name: _packed(path.read_bytes()) for name, path in files.items()}}
    page = string.Template((_ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        {name: (_ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in ("rules", "policy", "page")},
        title=html.escape(f"BabyAI: {folder.resolve().name}"), version=html.escape(version),
        precision=html.escape(manifest["precision"]), data=json.dumps(data).replace("<", "\\u003c"))
    write_text(out, page)
    return f"{len(world['rooms'])} rooms of {', '.join(levels)}; {len(page) / 1e6:.1f} MB"


def _check_fits(domain: Domain, description: dict[str, Any]) -> None:
    """Check that the page can run the agent in this domain; ValueError says what it found and what fits."""
    spec = ActionSpec.from_dict(description["domains"][domain.name]["action_spec"])
    data = description["config"]["data"]
    gathered = [data["domains"][domain.name]["demonstrations"], data["demonstrations"]]
    seen = next((one["image_size"] for one in gathered if one["environment"] == "babyai"), domain.image_size)
    found = [(spec.difference(BABYAI) and f"the ActionSpec {spec.name!r}", "that of BabyAI"),
             (domain.state and f"the state {domain.state.name!r}", "no state"),
             (len(domain.cameras) > 1 and f"the cameras {', '.join(domain.cameras)}", "one camera"),
             (domain.video and "clips as input (video)", "single images"),
             (domain.actions_per_image > 1 and f"{domain.actions_per_image} actions per image", "one"),
             (domain.image_size % VIEW and f"images of {domain.image_size} pixels",
              f"a multiple of {VIEW}, the cells of the view"),
             (seen != domain.image_size and f"images of {domain.image_size} pixels, resized from {seen}",
              "images as the simulator draws them")]
    if wrong := [f"{what}, expected {fits}" for what, fits in found if what]:
        raise ValueError(f"domain {domain.name!r}: to-page runs agents of configs/babyai.py; found {'; '.join(wrong)}")


def _runtime_files(folder: Path, manifest: dict[str, Any]) -> tuple[str, dict[str, Path]]:
    """Version and files of the unpacked npm package, after a check."""
    how = (f"expected the unpacked npm package {RUNTIME}, {manifest['onnxruntime']} or later: npm pack {RUNTIME} && "
           f"tar xzf {RUNTIME}-*.tgz, then --runtime package")
    if not (folder / "package.json").is_file():
        raise FileNotFoundError(f"--runtime {folder}: found no package.json; {how}")
    package = read_json_object(folder / "package.json")
    version = str(package.get("version", ""))
    if package.get("name") != RUNTIME or release(version) < release(manifest["onnxruntime"]):
        raise ValueError(f"--runtime {folder}: found {package.get('name')} {version}; {how}")
    files = {name: folder / path for name, path in _RUNTIME_FILES.items()}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise FileNotFoundError(f"--runtime {folder}: {missing[0]} is missing; {how}")
    return version, files


def _domain_json(domain: Domain, description: dict[str, Any]) -> dict[str, Any]:
    """The domain for policy.js; of BabyAI's actions every one is a choice between forced ids."""
    codec, language = domain.actions, description["config"]["model"]["language"]
    assert codec is not None
    before, state = codec.forced(codec.start)
    [after] = {tuple(codec.forced(following)[0]) for following in codec.ways[state].values()}
    return {"window": domain.window, "first_position": domain.first_position, "image_size": domain.image_size,
            "width": language["width"], "heads": language["heads"], "layers": language["depth"],
            "before": before, "choices": codec.groups[0]["parts"][0]["ids"], "after": after}


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")
