"""The plan of the ablations: what each part of the training does for BabyAI's GoToLocal, one factor at a time.

    python -m agent_jax.study transfer benchmarks/study/ablations.py --out runs/ablations

The agent is that of configs/babyai.py after 600 steps, on 10,000 demonstrations of five levels, so that
there is room above and below. Every arm differs from `base` in one factor and is compared with it over eight training
seeds. The committed outcomes are of the config as it was then, with two heads in the language model; now it makes
another hash.
"""

from agent_jax.study.plan import Arm, Comparison, Target, TransferPlan

SEEDS = tuple(range(8))
# By arm. One image a row in place of four: four times the rows, so that a step has as many images.
WITHOUT = {
    "no-mae": {"loss.mae": 0.0},
    "no-language": {"loss.language": 0.0},
    "mask-50": {"model.mae.mask_ratio": 0.5},
    "mask-90": {"model.mae.mask_ratio": 0.9},
    "visible": {"model.visual_tokens": "visible"},
    "window-1": {"data.domains.babyai.window": 1, "data.domains.babyai.stride": 1, "train.batch_size": 64},
}


def get_plan() -> TransferPlan:
    """Six comparisons with the same baseline; the first is the primary one, since the paper stresses it."""
    against = {name: Comparison(name, "base", seeds=SEEDS, margin=0.05) for name in WITHOUT}
    return TransferPlan(
        name="ablations",
        arms={"base": Arm(), **{name: Arm(overrides=values) for name, values in WITHOUT.items()}},
        targets={"gotolocal": Target(
            "configs/babyai.py", levels={"GoToLocal": 0.4, "GoToLocalS8N4": 0.2, "GoToLocalS8N2": 0.2,
                                         "GoToLocalS6N2": 0.1, "GoToLocalS5N2": 0.1},
            demonstrations=(10_000,), episodes={"GoToLocal": 200}, steps=600,
            overrides={"train.validate_every": 0, "checkpoint.every": 0})},
        primary=against.pop("no-mae"), secondary=against, policy="sampled",
    )
