"""The roofline of a step: a lower bound of its time from compute, memory traffic and communication.

    compute       matrix products of one device / peak
    HBM           bytes to and from its memory / bandwidth
    interconnect  sum over collectives of sent bytes / bandwidth towards the group

The roofline assumes that the three overlap entirely (Williams et al., 2009). A second figure is the step's time at an
assumed model FLOPs utilisation (MFU): operations of the model without recomputation / (peak x chips x time).
"""

from __future__ import annotations

import dataclasses

from agent_jax.plan.compiled import CompiledStep
from agent_jax.plan.topology import Topology

PAPER_FLOPS = 1.6e20  # of the whole pre-training: 13.4 million frames, 100 epochs, 41 GFLOP forward, and backward
DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Speed:
    """A step's time, and the figures that follow from it."""

    step_seconds: float
    frames_per_second: float
    mfu: float
    paper_days: float
    paper_chip_hours: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step by resource, and its speed under three assumptions."""

    compute_seconds: float
    hbm_seconds: float
    interconnect_seconds: float
    model_flops: int  # of a step, over all devices, without recomputation
    recomputed_flops: int
    device_flops: int  # of one device, as compiled
    intensity: float  # operations a byte of memory
    at_peak: Speed  # all three overlap
    in_turn: Speed  # no communication while computing
    assumed: Speed  # at the assumed MFU

    @property
    def bound_by(self) -> str:
        """The resource that takes longest."""
        seconds = {"compute": self.compute_seconds, "HBM": self.hbm_seconds, "interconnect": self.interconnect_seconds}
        return max(seconds, key=lambda name: seconds[name])


def roofline(step: CompiledStep, topology: Topology, frames: int, mfu: float) -> Roofline:
    """The roofline of a compiled step.

    Args:
        step: compiled for the topology.
        topology: its devices.
        frames: images of a step.
        mfu: assumed model FLOPs utilisation.
    """
    chip = topology.chip
    peak = chip.bf16_flops if step.config.model.dtype == "bfloat16" else chip.f32_flops
    devices = list(step.mesh.devices.flat)
    model = step.model_flops
    compute, hbm = step.device_flops / peak, step.device_bytes / chip.hbm_bandwidth
    sent = sum(each.sent_bytes / topology.bandwidth(each.groups, devices) for each in step.collectives)

    def speed(seconds: float) -> Speed:
        days = PAPER_FLOPS / model * seconds / DAY
        return Speed(seconds, frames / seconds, model / (seconds * peak * topology.devices), days,
                     days * 24 * topology.devices)

    return Roofline(compute, hbm, sent, model, step.recomputed_flops, step.device_flops,
                    step.device_flops / step.device_bytes, speed(max(compute, hbm, sent)),
                    speed(max(compute, hbm) + sent), speed(model / (mfu * peak * topology.devices)))
