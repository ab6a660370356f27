# %% [markdown]
# # Export and act with PyTorch
#
# `to-pytorch` writes a folder that does not need this package: CLIP and OPT in the format of transformers, the rest in
# safetensors, and `torch_agent.py`, the whole agent in one file, to train, act and answer. The folder is written only
# if PyTorch computes what JAX computes; the command prints the comparison.
#
#     pip install -e ".[babyai,torch]"
#     python examples/4_export_and_act_with_torch.py

# %%
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from agent_jax.envs import babyai
from agent_jax.policy import Policy

OUT = Path("runs/export_and_act_with_torch")
shutil.rmtree(OUT, ignore_errors=True)  # of the last time
OUT.mkdir(parents=True)


def command(line):
    """Run a command as in a terminal."""
    print(f"$ {line}", flush=True)
    subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)


command(f"python -m agent_jax.convert to-pytorch babyai-small {OUT}/exported")  # or the workdir of a run of your own

# %%
for path in sorted((OUT / "exported").rglob("*")):
    if path.is_file():
        print(f"  {path.relative_to(OUT / 'exported')!s:36} {path.stat().st_size:9,} bytes")

# %% [markdown]
# ## The same actions
#
# An episode with both policies, which see the same images. The one of PyTorch comes from the folder alone: copy it to a
# machine without JAX, and it acts there.

# %%
sys.path.insert(0, str(OUT / "exported"))
import torch_agent  # noqa: E402

in_torch = torch_agent.Policy(OUT / "exported", domain="babyai")
in_jax = Policy.load("babyai-small")

environment = babyai.make("GoToLocal", image_size=56)
observation, info = environment.reset(seed=1_000_000_005)
over, equal = False, []
print(environment.instruction)
while not over:
    image, instruction = observation["rgb"], environment.instruction
    [of_torch] = in_torch.act([image], [instruction], ["robot 0"])
    [of_jax] = in_jax.act([image], [instruction], ["robot 0"])
    equal.append(of_torch["action"] == of_jax["action"])
    print(f"  PyTorch {babyai.action_name(of_torch):8} JAX {babyai.action_name(of_jax)}")
    observation, _, terminated, truncated, info = environment.step(of_torch)
    over = terminated or truncated
print(f"{'reached' if info['success'] else 'not reached'}; {sum(equal)} of {len(equal)} actions are equal")

# %% [markdown]
# ## And then
#
# The network is a `torch.nn.Module`, so everything of PyTorch works on it. `docs/guides/weights.md` shows how to train
# it there and bring it back with `from-pytorch`; `to-onnx` makes a folder that acts with onnxruntime alone, `to-page` a
# web page (`docs/guides/edge.md`).
