"""The three losses (arXiv 2402.05929, eq. 2-5) and that of class labels, as weighted sums and weights, by domain.

    language, action: cross-entropy of a target, in nats        mae: squared error of a hidden patch, mean over X values
    label: cross-entropy of a clip's class, in nats

A sum and its weight are kept apart until everything is added up: over microbatches, over devices. Weights depend on the
batch alone, so those of the whole global batch are known before its first microbatch, and accumulation and sharding
change nothing. Two forms join the losses:

    mean: sum over domains of  token * (weighted mean over language and action targets) + mae * (mean of hidden patches)
    eq5:  mean over samples of (L_lang + L_mae + L_act) / (|W| + sum_t (|V_t| + |A_t|)), L_mae summed over pixel values

To both is added the mean over clips of the label's loss, of each domain in `mean`, of all in `eq5`; the paper has none.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from agent_jax.batch import Batch
from agent_jax.config import LossConfig
from agent_jax.models.agent import AgentOutput
from agent_jax.models.choice_table import ChoiceTable, choice_weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums by domain, each of shape (domains,), f32. The same class holds weights: what a sum is to be divided by."""

    language: jax.Array  # of NLL; weight: of targets
    action: jax.Array
    mae: jax.Array  # of the mean squared error of a patch; weight: hidden patches
    language_share: jax.Array  # of NLL / denominator of its sample; weight: samples
    action_share: jax.Array
    mae_share: jax.Array  # of the summed squared error / denominator
    language_correct: jax.Array  # targets whose best logit is right; weight: of targets
    action_correct: jax.Array  # choices whose best legal logit is right; weight: of choices, forced ids left out
    label: jax.Array | None = None  # of NLL; weight: labelled rows. None without a class head, as is the next
    label_correct: jax.Array | None = None

    def __add__(self, other: LossSums) -> LossSums:
        return jax.tree.map(jnp.add, self, other)


def token_nll(logits_BTK: jax.Array, target_BT: jax.Array, weight_BT: jax.Array) -> jax.Array:
    """nll_BT = -log softmax(logits)[target], in nats; 0 where the weight is 0, whatever the target there."""
    nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTK, jnp.where(weight_BT > 0, target_BT, 0))
    return jnp.where(weight_BT > 0, nll_BT, 0.0)


def _by_domain(values: jax.Array, domain: jax.Array, domains: int) -> jax.Array:
    """Sum of `values` for each domain, (domains,)."""
    member = domain[..., None] == jnp.arange(domains).reshape((1,) * domain.ndim + (-1,))
    return jnp.sum(jnp.where(member, values[..., None], 0.0), axis=tuple(range(values.ndim)))


def _frame_weight(batch: Batch) -> jax.Array:
    """Weight of every image in the MAE loss, (B, F): 0 for padding, whatever is written there."""
    return jnp.where(batch.clip_BF >= 0, batch.frame_weight_BF, 0.0)


def loss_sums(output: AgentOutput, batch: Batch, domains: int, choices: ChoiceTable | None = None) -> LossSums:
    """The weighted sums of a batch or microbatch.

    Args:
        output: of the agent; without a mask the MAE sums are 0.
        batch: the rows it was computed from.
        domains: number of domains.
        choices: legal ids at the choices; None: every id is taken for legal. Of `action_correct` alone.
    """
    language_BT, action_BT = batch.language_weight_BT, batch.action_weight_BT
    nll_BT = token_nll(output.logits_BTK, batch.target_BT, language_BT + action_BT)
    best_BT = jnp.argmax(output.logits_BTK, axis=-1)
    right_BT = (best_BT == batch.target_BT).astype(nll_BT.dtype)
    chosen_BT = (best_BT if choices is None else choices.best(output.logits_BTK, batch)) == batch.target_BT
    share_BT = nll_BT / jnp.where(language_BT + action_BT > 0, batch.denominator_BT, 1.0)
    of_target = lambda value_BT, weight_BT: _by_domain(value_BT * weight_BT, batch.domain_BT, domains)  # noqa: E731
    if output.predicted_BFIX is None or output.pixels_BFIX is None:
        mae = mae_share = jnp.zeros(domains, nll_BT.dtype)
    else:
        square_BFIX = jnp.square(output.predicted_BFIX - output.pixels_BFIX)
        error_BF = jnp.sum(jnp.mean(square_BFIX, axis=-1), axis=-1)  # sum over hidden patches
        values = square_BFIX.shape[-1]
        weight_BF = _frame_weight(batch)
        mae = _by_domain(error_BF * weight_BF, batch.domain_BF, domains)
        share_BF = values * error_BF / jnp.where(weight_BF > 0, batch.denominator_BF, 1.0)
        mae_share = _by_domain(share_BF * weight_BF, batch.domain_BF, domains)
    label, label_correct = _label_sums(output.classes_BY, batch, domains)
    return LossSums(
        language=of_target(nll_BT, language_BT),
        action=of_target(nll_BT, action_BT),
        mae=mae,
        language_share=of_target(share_BT, language_BT),
        action_share=of_target(share_BT, action_BT),
        mae_share=mae_share,
        language_correct=of_target(right_BT, language_BT),
        action_correct=of_target(chosen_BT.astype(nll_BT.dtype), choice_weight(batch)),
        label=label,
        label_correct=label_correct,
    )


def _labelled(batch: Batch) -> jax.Array:
    """Whether a row has a label, bool (B,); a label in a row of padding is none."""
    return (batch.label_B >= 0) & (batch.clip_BF[:, 0] >= 0)


def _label_sums(classes_BY: jax.Array | None, batch: Batch,
                domains: int) -> tuple[jax.Array | None, jax.Array | None]:
    """Sums by domain of the NLL of the rows' labels, and of labels whose logit is best."""
    if classes_BY is None:
        return None, None
    labelled_B = _labelled(batch)
    label_B = jnp.where(labelled_B, batch.label_B, 0)
    nll_B = token_nll(classes_BY[:, None], label_B[:, None], labelled_B[:, None])[:, 0]
    right_B = labelled_B & (jnp.argmax(classes_BY, axis=-1) == label_B)
    of_row = lambda value_B: _by_domain(value_B, batch.domain_BF[:, 0], domains)  # noqa: E731
    return of_row(nll_B), of_row(right_B.astype(nll_B.dtype))


def loss_weights(batch: Batch, domains: int, hidden_patches: int, *, classes: bool = False) -> LossSums:
    """What the sums of the whole global batch are to be divided by.

    Args:
        batch: all rows of the optimizer step.
        domains: number of domains.
        hidden_patches: I, patches hidden in each image.
        classes: whether the model has a class head.
    """
    language = _by_domain(batch.language_weight_BT, batch.domain_BT, domains)
    action = _by_domain(batch.action_weight_BT, batch.domain_BT, domains)
    choice = _by_domain(choice_weight(batch), batch.domain_BT, domains)
    mae = _by_domain(_frame_weight(batch) * hidden_patches, batch.domain_BF, domains)
    samples = _samples(batch, domains)
    label = _by_domain(_labelled(batch).astype(jnp.float32), batch.domain_BF[:, 0], domains) if classes else None
    return LossSums(language, action, mae, samples, samples, samples, language, choice, label, label)


def _samples(batch: Batch, domains: int) -> jax.Array:
    """Number of samples of each domain, (domains,): slots at position 0 of a segment."""
    first_BS = ((batch.segment_BS > 0) & (batch.position_BS == 0)).astype(jnp.float32)
    return _by_domain(first_BS, batch.domain_BS, domains)


def total(sums: LossSums, weights: LossSums, config: LossConfig) -> jax.Array:
    """The scalar loss. Linear in `sums`, so the totals of microbatches add up to the total of the batch."""
    if config.form == "eq5":
        joint = config.language * sums.language_share + config.action * sums.action_share + config.mae * sums.mae_share
        mean = jnp.sum(joint) / jnp.maximum(jnp.sum(weights.language_share), 1.0)
        if sums.label is None or weights.label is None:
            return mean
        return mean + config.label * jnp.sum(sums.label) * _reciprocal(jnp.sum(weights.label))
    token_weight = config.language * weights.language + config.action * weights.action
    token = (config.language * sums.language + config.action * sums.action) * _reciprocal(token_weight)
    joint = config.token * token + config.mae * sums.mae * _reciprocal(weights.mae)
    if sums.label is not None and weights.label is not None:
        joint += config.label * sums.label * _reciprocal(weights.label)
    return jnp.sum(joint)


def means(sums: LossSums, weights: LossSums) -> LossSums:
    """Each loss as a mean by domain, for the log; 0 where a domain has no targets of the kind."""
    return jax.tree.map(lambda value, weight: value * _reciprocal(weight), sums, weights)


def _reciprocal(weight: jax.Array) -> jax.Array:
    """1 / weight, and 0 where the weight is 0: a batch may lack a domain or a loss."""
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
