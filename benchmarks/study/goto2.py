"""The plan of the transfer study's fourth target: ViZDoom's GoTo2, which names one of two objects.

    python -m agent_jax.study transfer benchmarks/study/goto2.py --out runs/goto2

Pre-training is that of the arm `joint` of transfer.py, which has only GoTo1 of ViZDoom: one object, so its instruction
need not be read. What counts is the right object, given that one was reached; walking to any of the two is 50%.
A pilot from scratch, training seed 100, reached an object in 172 of 200 episodes, the right one in 88.
"""

import runpy
from pathlib import Path

from agent_jax.study.plan import Arm, Comparison, Target, TransferPlan

TRANSFER = runpy.run_path(str(Path(__file__).with_name("transfer.py")))


def get_plan() -> TransferPlan:
    """Joint pre-training against none."""
    goto2 = Target("configs/finetune/mini.py:vizdoom", {"GoTo2": 1.0}, (1_000,), {"GoTo2": 200}, steps=600,
                   overrides={**TRANSFER["MUON"], "train.validate_every": 0, "checkpoint.every": 0}, reached_before=60)
    return TransferPlan("goto2", {"scratch": Arm(), "joint": TRANSFER["pretrained"]()}, {"goto2": goto2},
                        primary=Comparison("joint", "scratch", TRANSFER["EIGHT"], margin=0.05), policy="sampled")
