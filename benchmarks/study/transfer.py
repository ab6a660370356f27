"""The plan of the transfer study: does joint pre-training in miniature help on what the agent has not seen?

    python -m agent_jax.study transfer benchmarks/study/transfer.py --out runs/transfer

Pre-training is configs/pretrain_mini.py:images on BabyAI, Meta-World, ViZDoom and Language-Table, with Muon; of BabyAI
it has only the missions of held_out_pairs.py's known part. Targets:

    pairs     GoToLocal, missions that name pairs of colour and kind that no pre-training mission names
    pickup    PickupLoc: pick up an object that is named by its place
    window    Meta-World's window-close

Numbers of demonstrations, steps and learning rates were chosen on other training seeds, 100 and 101. On pairs,
pre-trained arms reached 58 and 60% with scratch's rate of 0.002, and 65.5% twice with 0.0005.
"""

from typing import Any

from agent_jax.study.plan import Arm, Comparison, Target, TransferPlan

PRETRAINING, TARGETS = "configs/pretrain_mini.py:images", "configs/finetune/mini.py"
PAIRS = "benchmarks/study/held_out_pairs.py"
MUON = {"optimizer.name": "muon"}
STEPS = 2_000
KNOWN = {"GoToLocalS8N2-known": 4_000, "GoToLocalS6N2-known": 4_000, "GoToLocalS5N2-known": 4_000,
         "GoToObj-known": 3_000}
CLIPS = ("clips", "clip_classes")  # left out by :images
EIGHT, FOUR = tuple(range(8)), tuple(range(4))


def pretrained(**values: Any) -> Arm:
    """An arm of the pre-training with other values, by field with __ for a dot."""
    base = {**MUON, "train.steps": STEPS, "train.validate_every": STEPS, "checkpoint.every": STEPS,
            "closed_loop.domains": {}, "data.domains.babyai.demonstrations.environment": PAIRS,
            "data.domains.babyai.demonstrations.episodes": KNOWN}
    return Arm(PRETRAINING, base | {name.replace("__", "."): value for name, value in values.items()},
               overrides={"optimizer.learning_rate": 5e-4, "optimizer.end_learning_rate": 5e-6})


def target(variant: str, task: str, numbers: tuple[int, int, int], *, steps: int, episodes: int, environment: str = ""
           ) -> Target:
    """A target of one task."""
    own = {f"{group}.environment": environment for group in ("data.demonstrations", "closed_loop") if environment}
    return Target(f"{TARGETS}:{variant}", {task: 1.0}, numbers, {task: episodes}, steps,
                  {**MUON, "train.validate_every": 0, "checkpoint.every": 0, **own})


def get_plan() -> TransferPlan:
    """Joint pre-training against none, and what of it helps."""
    targets = {
        "pairs": target("babyai", "GoToLocal-new", (30, 100, 300), steps=300, episodes=200, environment=PAIRS),
        "pickup": target("babyai", "PickupLoc", (300, 1_000, 3_000), steps=600, episodes=200),
        "window": target("metaworld", "window-close@16hz", (2, 5, 15), steps=200, episodes=30),
    }
    arms = {
        "scratch": Arm(),
        "joint": pretrained(),
        "joint-no-mae": pretrained(loss__mae=0.0),
        "babyai": pretrained(data__leave_out=(*CLIPS, "metaworld", "vizdoom", "language_table")),
        "without-babyai": pretrained(data__leave_out=(*CLIPS, "babyai")),
        "scratch-long": Arm(steps={name: entry.steps + STEPS for name, entry in targets.items()}),
    }

    def on_pairs(arm: str, baseline: str) -> Comparison:
        return Comparison(arm, baseline, FOUR, demonstrations=1, targets=("pairs",))

    return TransferPlan(
        "transfer", arms, targets,
        primary=Comparison("joint", "scratch", EIGHT, demonstrations=1, margin=0.05),
        secondary={
            "domain": on_pairs("joint", "babyai"),
            "other domains": on_pairs("without-babyai", "scratch"),
            "mae": on_pairs("joint", "joint-no-mae"),
            "compute": on_pairs("joint", "scratch-long"),
        },
        curve_arms=("scratch", "joint"), curve_seeds=FOUR, policy="sampled",
    )
