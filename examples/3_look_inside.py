# %% [markdown]
# # Look inside
#
# What the model receives, where an action looks, and what the masked autoencoder reconstructs, for the agent that comes
# with the package. `python -m agent_jax.view` makes pages of the same; here are the functions behind it.
#
#     pip install -e ".[babyai]"
#     python examples/3_look_inside.py

# %%
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from agent_jax.config import DemonstrationsConfig
from agent_jax.data.pipeline.layout import lay_out, row_size, stack
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.store import open_store
from agent_jax.envs.collect import collect
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.view.attention import look
from agent_jax.view.reconstruction import draw_rows
from agent_jax.view.row import write_row_page

OUT = Path("runs/look_inside")
shutil.rmtree(OUT, ignore_errors=True)  # of the last time
OUT.mkdir(parents=True)

trained = TrainedRun.load("babyai-small")  # or the workdir of a run of your own
params, model, domain = trained.params(), trained.config.model, trained.domain()

# Episodes of the simulator's expert, as training had them. The data of a run of your own: trained.open_store(domain).
data = collect(DemonstrationsConfig(environment="babyai", episodes={"GoToLocal": 20}, validation_episodes=10,
                                    processes=1), OUT / "data")
windows = Windows(domain, open_store(data), "test")

# %% [markdown]
# ## A row
#
# Training cuts episodes into windows. The model receives a window as one row: the instruction, then for each step the
# image, and the action that followed. An image is 50 slots: a class token and 7 x 7 patches. Every slot attends to
# itself and those before it; each token is predicted by the slot before it.

# %%
visual_tokens, patches = 1 + model.vision.patches, model.vision.patches
size = row_size([domain], visual_tokens, domain.images, model.language.positions)
window = max(map(windows.read, range(len(windows)), [0] * len(windows)), key=lambda window: len(window.steps))
row = lay_out((window,), size, visual_tokens, patches)

used = row["segment_BS"] > 0
shown = []
for token, visual in zip(row["token_BS"][used], row["visual_BS"][used], strict=True):
    if visual < 0:
        shown.append(domain.vocabulary.token(int(token)))
    elif visual % visual_tokens == 0:
        shown.append(f"\n  <image {visual // visual_tokens}: {visual_tokens} slots>")
print(f"{used.sum()} of {len(used)} slots:\n  {' '.join(shown)}")

# The same as a page, with the weight of each target.
(OUT / "config.json").write_text(json.dumps(dataclasses.asdict(trained.config)))
print(write_row_page(OUT / "row.html", data, 0, config=str(OUT / "config.json")))

# %% [markdown]
# ## Where an action looks
#
# Two ways to ask which patches the action of the window's last step depends on: the attention of the slots that predict
# it, and occlusion, the change of the action's probabilities when a patch is hidden. Attention alone proves little; the
# rank correlation of the two says how far to trust it.

# %%
looked = look(trained, params, windows, window)
for recorded, best, of_recorded, of_best in looked.choices:
    print(f"recorded {recorded} ({of_recorded:.0%}), most probable {best} ({of_best:.0%})")
for kind, share_L in looked.kinds.items():
    print(f"  attention to {kind:27} {share_L.mean():4.0%}")
print(f"rank correlation of attention and occlusion: {looked.rank_correlation(looked.mean_FGG):.2f}")


def heat(weights_FGG, side=112):
    """The images of the window, red where the weights are large."""
    pictures = []
    for image, weights_GG in zip(looked.images, weights_FGG / weights_FGG.max(), strict=True):
        red = np.kron(weights_GG.clip(0), np.ones((model.vision.patch_size,) * 2))[..., None] * 0.8
        pictures.append(np.uint8(image * 0.5 * (1 - red) + 60 + np.array((195, 0, 0)) * red * 0.9))
    whole = Image.fromarray(np.concatenate(pictures, axis=1))
    return whole.resize((side * len(pictures), side), Image.Resampling.NEAREST)


both = Image.fromarray(np.concatenate([heat(looked.mean_FGG), heat(looked.occlusion_FGG)]))  # above and below
both.save(OUT / "attention.png")
print(f"picture: {OUT}/attention.png")
both

# %% [markdown]
# ## What the masked autoencoder reconstructs
#
# In training the encoder sees a quarter of the patches, and a small decoder reconstructs the others. It shows what the
# encoder knows about scenes: walls and empty floor come out right, an object that is wholly hidden cannot.

# %%
several = [dataclasses.replace(one, steps=one.steps[:1]) for one in (windows.read(number, 0) for number in range(4))]
picture = draw_rows(trained.config, params, stack([lay_out((one,), size, visual_tokens, patches) for one in several]))
picture.save(OUT / "reconstruction.png")
print(f"picture: {OUT}/reconstruction.png")
picture
