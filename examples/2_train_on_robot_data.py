# %% [markdown]
# # Train on your robot data
#
# From a LeRobot data set to an agent: prepare, check, a config of ten lines, train, predict held-out episodes. The data
# are made up here, so that every step can be tried without a robot and in less than a minute on two CPU cores. With
# your own data set, begin at "Prepare and check".
#
#     pip install -e ".[data]"
#     python examples/2_train_on_robot_data.py

# %%
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from agent_jax.policy import Policy

OUT = Path("runs/train_on_robot_data")
shutil.rmtree(OUT, ignore_errors=True)  # of the last time
OUT.mkdir(parents=True)


def command(line):
    """Run a command as in a terminal."""
    print(f"$ {line}", flush=True)
    subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)


# %% [markdown]
# ## A data set of a made-up arm
#
# A camera looks down on a table of 32 x 32 cm, a pixel a centimetre. The hand (white) goes to the ball (orange), at
# most 4 cm a step along each axis, and closes its gripper there. The right action can be seen in the image.
#
# The files are those of LeRobot 2.1: a table for each episode, with PNG images in it, and three files about them.

# %%
SIZE, RATE_HZ, STEP_CM, EPISODES, HELD_OUT = 32, 10, 4.0, 600, 40
TASK = "grasp the ball"
LEROBOT = OUT / "lerobot"


def picture(hand, ball):
    """What the camera sees: uint8 (32, 32, 3)."""
    image = Image.new("RGB", (SIZE, SIZE), (60, 70, 80))
    draw = ImageDraw.Draw(image)
    for (x, y), colour in ((ball, (240, 140, 40)), (hand, (250, 250, 250))):
        draw.rectangle((x - 3, y - 3, x + 3, y + 3), fill=colour)
    return np.asarray(image)


def right_action(hand, ball):
    """dx and dy in cm, and 1 to close the gripper."""
    return [*np.clip(ball - hand, -STEP_CM, STEP_CM), float(np.abs(ball - hand).max() < 1)]


def png(image):
    """An image as LeRobot stores it in a table."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def write_episode(number):
    """Write one episode; returns its length."""
    hand, ball = np.random.default_rng(number).uniform(4, SIZE - 4, (2, 2))
    images, actions = [], []
    while not actions or not actions[-1][2]:
        images.append(png(picture(hand, ball)))
        actions.append(right_action(hand, ball))
        hand = hand + actions[-1][:2]
    length = len(actions)
    table = pa.table({
        "observation.images.top": images, "action": pa.array(actions, pa.list_(pa.float32(), 3)),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / RATE_HZ), "frame_index": list(range(length)),
        "episode_index": [number] * length, "index": list(range(length)), "task_index": [0] * length})
    pq.write_table(table, LEROBOT / f"data/chunk-000/episode_{number:06d}.parquet")
    return length


(LEROBOT / "data/chunk-000").mkdir(parents=True)
(LEROBOT / "meta").mkdir()
lengths = [write_episode(number) for number in range(EPISODES)]
counters = {name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index", "task_index")}
info = {
    "codebase_version": "v2.1", "robot_type": "made_up_arm", "fps": RATE_HZ, "total_episodes": EPISODES,
    "total_frames": sum(lengths), "chunks_size": 1000,
    "splits": {"train": f"0:{EPISODES - HELD_OUT}", "test": f"{EPISODES - HELD_OUT}:{EPISODES}"},
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "features": {
        "observation.images.top": {"dtype": "image", "shape": [SIZE, SIZE, 3],
                                   "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [3], "names": ["dx", "dy", "close"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None}, **counters}}
(LEROBOT / "meta/info.json").write_text(json.dumps(info, indent=1))
(LEROBOT / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TASK}) + "\n")
(LEROBOT / "meta/episodes.jsonl").write_text("".join(
    json.dumps({"episode_index": number, "tasks": [TASK], "length": length}) + "\n"
    for number, length in enumerate(lengths)))
print(f"{EPISODES} episodes, {sum(lengths)} steps in {LEROBOT}")

# %% [markdown]
# ## Prepare and check
#
# `prepare` converts the data set to the format that training reads, `check` looks for what is wrong. Both describe what
# they found; read it once, it shows most mistakes (units, axes, the rate, a camera that is upside down).

# %%
command(f"python -m agent_jax.data prepare --source lerobot --path {LEROBOT} --out {OUT}/data --processes 1")
command(f"python -m agent_jax.data check {OUT}/data --images")

# %% [markdown]
# ## A config
#
# What the numbers mean, and how large the agent is. Each number of an action becomes one token of 17: bins of half a
# centimetre. `presets.from_scratch` is a small agent for a CPU, which needs no weights.

# %%
CONFIG = '''\
from agent_jax import presets

def _main(config):
    presets.from_scratch(config, steps=600, image_size=32, width=64, vision_depth=1, language_depth=2)
    config.vocabulary.blocks = ("my_arm",)
    config.data.domains = {"my_arm": presets.domain(
        path="runs/train_on_robot_data/data", window=1, stride=1,
        action_spec=presets.arm_spec("my_arm", names=("dx", "dy", "close"), low=(-4, -4, 0), high=(4, 4, 1),
                                     unit=("cm", "cm", ""), rate_hz=10, count=17))}

def get_config(variant=""):
    return presets.build(variant, {"": [_main]})
'''
print(CONFIG)
(OUT / "my_arm.py").write_text(CONFIG)

# %% [markdown]
# ## Train
#
# The same command resumes a run that was stopped. At a larger scale nothing changes but the config: instead of
# `presets.from_scratch`, `presets.finetune` fine-tunes the full-size agent from CLIP and OPT on a GPU:
#
#     python -m agent_jax.train --config my_robot.py --config.init.pretrained.vision=openai/clip-vit-base-patch16 \
#         --config.init.pretrained.language=facebook/opt-125m --config.vocabulary.tokenizer=OPT_DIR
#
# (docs/guides/finetune.md).

# %%
command(f"python -m agent_jax.train --config {OUT}/my_arm.py --workdir {OUT}/run")

# %% [markdown]
# ## Is it better than before?
#
# Losses and accuracies are in `metrics.jsonl`, those of the 40 held-out episodes with `"split": "validation"`. An
# accuracy counts the tokens of an action that are exactly right; `report.html` has the curves.

# %%
metrics = [json.loads(line) for line in (OUT / "run/metrics.jsonl").read_text().splitlines()]
for record in metrics:
    if record["split"] == "validation":
        loss, accuracy = record["losses"]["action"], record["losses"]["action_accuracy"]
        print(f"  step {record['step']:4}: action loss {loss:.3f}, accuracy {accuracy:.0%}")

# %% [markdown]
# ## Act
#
# Twenty new tables at once: the agent moves the hands, until it closes the grippers.

# %%
policy = Policy.load(OUT / "run")
scenes = np.random.default_rng(EPISODES).uniform(4, SIZE - 4, (20, 2, 2))
hands, balls = scenes[:, 0], scenes[:, 1]
closed, images = np.zeros(20, bool), []
for _ in range(16):
    seen = [picture(hand, ball) for hand, ball in zip(hands, balls, strict=True)]
    images.append(seen[0])
    actions = np.array([found["action"] for found in policy.act(seen, [TASK] * 20, range(20))])
    closed |= actions[:, 2] > 0.5
    hands = hands + np.where(closed[:, None], 0, actions[:, :2])
near = np.abs(hands - balls).max(axis=1) < 2
print(f"{(closed & near).sum()} of 20 hands closed within 2 cm of the ball")

framed = [np.pad(image, ((0, 0), (0, 1), (0, 0)), constant_values=255) for image in images[:8]]
strip = Image.fromarray(np.concatenate(framed, axis=1)).resize((8 * 132, 128), Image.Resampling.NEAREST)
strip.save(OUT / "acting.png")
print(f"picture: {OUT}/acting.png")
strip
