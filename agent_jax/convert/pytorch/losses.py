"""The losses of the paper (eq. 2-5), and the groups of parameters of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from torch import Tensor

from agent_jax.convert.pytorch.agent import Agent, Output


def losses(output: Output, batch: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The losses of a batch and their total, in the form of `config` (agent.config["loss"]).

        mean: sum over domains of  token * (weighted mean over language and action targets) + mae * (mean of patches)
        eq5:  mean over samples of (L_lang + L_mae + L_act) / (|W| + sum_t (|V_t| + |A_t|))

    A class head adds the mean cross-entropy of the labels, by domain in `mean`, over all in `eq5`.

    Returns:
        `language`, `action` and `label` as means over their targets in nats, `mae` as mean squared error of a hidden
        patch, and `total`, to minimise.
    """
    language_BT, action_BT = batch["language_weight_BT"], batch["action_weight_BT"]
    frame_BF = torch.where(batch["clip_BF"] >= 0, batch["frame_weight_BF"], 0.0)
    target_BT = torch.where(language_BT + action_BT > 0, batch["target_BT"], 0).long()
    nll_BT = F.cross_entropy(output.logits_BTK.transpose(1, 2), target_BT, reduction="none")
    nll_BT = torch.where(language_BT + action_BT > 0, nll_BT, 0.0)
    if output.predicted_BFIX is None or output.pixels_BFIX is None:
        error_BF, patches, values = torch.zeros_like(frame_BF), 1, 1
    else:
        square_BFIX = (output.predicted_BFIX - output.pixels_BFIX).square()
        error_BF, (patches, values) = square_BFIX.mean(-1).sum(-1), square_BFIX.shape[-2:]
    label_B, nll_B = torch.zeros_like(frame_BF[:, 0]), torch.zeros_like(frame_BF[:, 0])
    if output.classes_BY is not None:
        label_B = ((batch["label_B"] >= 0) & (batch["clip_BF"][:, 0] >= 0)).float()
        nll_B = F.cross_entropy(output.classes_BY, batch["label_B"].long().clamp(min=0), reduction="none")
    if config["form"] == "eq5":
        token_BT = nll_BT * (config["language"] * language_BT + config["action"] * action_BT) / batch["denominator_BT"]
        mae_BF = config["mae"] * values * error_BF * frame_BF / batch["denominator_BF"]
        samples = ((batch["segment_BS"] > 0) & (batch["position_BS"] == 0)).sum().clamp(min=1)
        total = (token_BT.sum() + mae_BF.sum()) / samples + config["label"] * _mean(nll_B, label_B)
    else:
        total = nll_BT.new_zeros(())
        for domain in torch.cat([batch["domain_BT"].flatten(), batch["domain_BF"].flatten()]).unique().tolist():
            here_BT, here_BF = batch["domain_BT"] == domain, batch["domain_BF"] == domain
            weight_BT = (config["language"] * language_BT + config["action"] * action_BT) * here_BT
            total = total + config["token"] * _mean(nll_BT, weight_BT)
            total = total + config["mae"] * _mean(error_BF / patches, frame_BF * here_BF)
            total = total + config["label"] * _mean(nll_B, label_B * here_BF[:, 0])
    return {"language": _mean(nll_BT, language_BT), "action": _mean(nll_BT, action_BT), "label": _mean(nll_B, label_B),
            "mae": _mean(error_BF / patches, frame_BF), "total": total}


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 without any weight."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def parameter_groups(agent: Agent, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for torch.optim.AdamW: no decay of biases, norms, single tokens and position tables."""
    named = [(p, p.dim() > 1 and "position" not in name) for name, p in agent.named_parameters() if p.requires_grad]
    decayed, rest = ([p for p, shrinks in named if shrinks is wanted] for wanted in (True, False))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
