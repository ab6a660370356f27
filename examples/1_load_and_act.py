# %% [markdown]
# # Load an agent and act
#
# `babyai-small` comes with the package: an agent of 208,928 parameters, trained on demonstrations of
# [BabyAI](https://arxiv.org/abs/1810.08272). It sees the 7 x 7 cells in front of it and reads an instruction.
#
#     pip install -e ".[babyai]"
#     python examples/1_load_and_act.py

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs import babyai
from agent_jax.evaluate.closed_loop import closed_loop
from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rollout_video import write_gif
from agent_jax.policy import Policy

OUT = Path("runs/load_and_act")
OUT.mkdir(parents=True, exist_ok=True)

policy = Policy.load("babyai-small")  # or the workdir of a run of your own
environment = babyai.make("GoToLocal", image_size=56)
SEED = 1_000_000_009  # of the room; training used seeds below 1,000,000,000

# %% [markdown]
# ## One episode
#
# `act` takes sequences, since a policy acts in many environments at once; the last argument is the environment's id.
# Images are uint8 (height, width, 3). Every action is one that the environment knows.


# %%
def run_episode(seed, instruction=""):
    """Act in the episode of a seed until it ends; "": with its own instruction."""
    observation, _ = environment.reset(seed=seed)
    instruction = instruction or environment.instruction
    fulfilled = babyai.goal_of(environment, instruction)
    images, actions, probabilities, success = [observation["rgb"]], [], [], False
    policy.reset([0])
    while not success and len(actions) < 30:
        [action] = policy.act([images[-1]], [instruction], [0])
        actions.append(babyai.action_name(action))
        probabilities.append(policy.probability(0))
        observation, *_ = environment.step(action)
        images.append(observation["rgb"])
        success = fulfilled(action)
    return RolloutRecording("GoToLocal", "agent", seed, (instruction,) * len(images), np.stack(images), tuple(actions),
                            success, tuple(probabilities))


def strip(images, side=112):
    """Images side by side, enlarged."""
    row = np.concatenate([np.pad(image, ((0, 0), (0, 2), (0, 0)), constant_values=255) for image in images], axis=1)
    scale = side // len(images[0])
    return Image.fromarray(row.repeat(scale, axis=0).repeat(scale, axis=1))


episode = run_episode(seed=SEED)
print(f"{episode.instructions[0]}: {'reached' if episode.success else 'not reached'}")
for number, (action, probability) in enumerate(zip(episode.actions, episode.probabilities, strict=True), start=1):
    print(f"  step {number:2}: {action:8} ({probability:.0%})")

# %%
write_gif(OUT / "episode.gif", episode)
strip(episode.frames).save(OUT / "episode.png")
print(f"pictures: {OUT}/episode.gif and episode.png")
strip(episode.frames)

# %% [markdown]
# ## What it considered
#
# The probabilities of all seven actions at the last step. The ids of the vocabulary have names.

# %%
[choice] = policy.choices(0)
for token, probability in sorted(choice.items(), key=lambda item: -item[1]):
    print(f"  {policy.domain.vocabulary.token(token):20} {probability:7.2%}")

# %% [markdown]
# ## An instruction of your own
#
# The same room, but another object: the agent goes where the text says. It was trained on "go to the COLOR OBJECT"; of
# other words it knows nothing.

# %%
environment.reset(seed=SEED)
other = babyai.contradict(environment, np.random.default_rng(0))  # names another object of the room
for instruction in (environment.instruction, other):
    episode = run_episode(SEED, instruction)
    print(f"{instruction}: {'reached' if episode.success else 'not reached'} by {' '.join(episode.actions)}")
strip(episode.frames)

# %% [markdown]
# ## Success
#
# Twenty rooms that training never used, next to random actions and the simulator's expert. The command is
# `python -m agent_jax.evaluate closed-loop --checkpoint babyai-small --env babyai --episodes 20 --baselines`.

# %%
report = closed_loop(ClosedLoopConfig(environment="babyai", episodes={"GoToLocal": 20}, processes=0),
                     {"agent": policy}, domain=policy.domain, log=lambda line: None)
for name, found in report["GoToLocal"].items():
    low, high = found["ci95"]
    print(f"  {name:13} {found['success']:4.0%} of {found['episodes']} episodes (95% interval {low:.0%} to {high:.0%})")
