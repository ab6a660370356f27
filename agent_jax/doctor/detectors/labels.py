"""Detectors that compare episodes: conflicting labels, an instruction without influence, leaks between splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from agent_jax.doctor.episodes import DataSet
from agent_jax.doctor.finding import Finding, Place, place_of

STEPS_OF_EPISODE = 20  # compared, evenly spaced: neighbours in time are alike
MOST_STEPS = 2000  # compared: their kernel takes 32 MB, and a solution of it a second
NEAR_LEVELS = 10  # greatest difference of a thumbnail's pixel between near-equal images
NEAR_STATE = 0.1  # standard deviations of a state between near-equal observations
OPPOSITE = -0.5  # cosine of two actions: more than 120 degrees apart
AT_REST = 0.5  # root-mean-square of a scaled action below which its direction is noise
LEAST_PAIRS = 20  # near-equal ones, to speak of a share
CONFLICT_SHARE = 0.1  # of near-equal pairs with opposite actions
CHOICE_SHARE = 0.5  # the same of choices, of which several may be right
FOLDS = 5  # of the cross-validation, over episodes
RIDGE = 0.1  # of the kernel's unit diagonal
PREDICTABLE = 0.6  # share of the action's variance, without the instruction: below, the predictor is too weak to judge
REDUNDANT = 0.9  # share of the instruction's variance that the first image and state predict
GAIN = 0.02  # of that share, by the instruction: below, it is noise of the folds
SAME_LEVELS = 8  # greatest difference of a thumbnail's pixel between copies of an image; another JPEG makes less


def conflicting_labels(data: DataSet) -> Iterator[Finding]:
    """Near-equal observation and equal instruction, opposite actions, in two episodes."""
    if not data.actions or len(data.episodes) < 2:
        return
    episode_N, step_N = _sampled(data)
    images_ND, states_NS = _observations(data, episode_N, step_N)
    actions_NA = np.stack([data.episodes[e].actions[t] for e, t in zip(episode_N, step_N, strict=True)])
    numbers = data.numbers()
    scaled_NA = (actions_NA / np.maximum(np.sqrt((actions_NA**2).mean(axis=0)), 1e-9))[:, numbers]
    texts = np.array([data.episodes[e].instruction for e in episode_N])
    near, opposite = 0, []
    for text in np.unique(texts):
        group = np.flatnonzero(texts == text)
        for place, i in enumerate(group):
            others = group[place + 1 :]
            others = others[episode_N[others] != episode_N[i]]
            others = others[(np.abs(states_NS[others] - states_NS[i]) <= NEAR_STATE).all(axis=1)]
            if images_ND.shape[1]:
                others = others[np.abs(images_ND[others] - images_ND[i]).max(axis=1, initial=0) <= NEAR_LEVELS]
            near += len(others)
            opposite += [(i, j) for j in others if _opposite(scaled_NA[i], scaled_NA[j], actions_NA[i], actions_NA[j])]
    if near < LEAST_PAIRS or len(opposite) < (CONFLICT_SHARE if numbers else CHOICE_SHARE) * near:
        return
    counts = np.bincount([episode_N[i] for pair in opposite for i in pair], minlength=len(data.episodes))
    opposite.sort(key=lambda pair: -int(counts[episode_N[pair[0]]] + counts[episode_N[pair[1]]]))
    places = [place_of(data.episodes[int(episode_N[i])], int(step_N[i])) for pair in opposite for i in pair]
    yield Finding("conflicting_labels", "wrong", f"{len(opposite):,} of {near:,} pairs of near-equal observations with "
                  f"the same instruction have {'opposite' if numbers else 'different'} actions; the model can only "
                  "learn their mean", "look for a sign or frame that differs between recordings, or for something "
                  "that the images do not show", places)


def unused_instruction(data: DataSet) -> Iterator[Finding]:
    """The action is predicted as well without the instruction, or the first image gives the instruction away.

    Training then cannot make the model obey it. Cross-validated kernel ridge regression over episodes. A weak predictor
    proves nothing, so nothing is reported if it predicts little.
    """
    if not data.actions or not data.episodes:
        return
    texts = sorted({episode.instruction for episode in data.episodes})
    if len(texts) < 2:
        yield Finding("unused_instruction", "note", f"all {len(data.episodes):,} episodes have the instruction "
                      f"{texts[0]!r}, which therefore cannot matter", "add other tasks, if the model should follow "
                      "instructions")
        return
    if len(data.episodes) < 2 * FOLDS:
        return
    places = [place_of(one) for one in data.episodes[:: max(1, len(data.episodes) // 6)]]
    advice = "record several tasks in the same scene, or the model will ignore its instruction"
    redundant = instruction_in_first_image(data)
    if redundant >= REDUNDANT:
        yield Finding("unused_instruction", "note", f"{len(texts):,} instructions, but the first image and state "
                      f"predict {redundant:.0%} of their words' variance: the scene gives the task away, and the "
                      "instruction cannot matter here", advice, places)
        return
    without, using = predictability(data)
    if without >= PREDICTABLE and using - without < GAIN:
        yield Finding("unused_instruction", "note", f"{len(texts):,} instructions, but image and state alone predict "
                      f"{without:.0%} of the action's variance, with the instruction {max(using, 0):.0%}; the "
                      "instruction cannot matter here", advice, places)


def instruction_in_first_image(data: DataSet) -> float:
    """Share of the variance of the instructions' words that the first image and state of other episodes predict."""
    episode_E = np.arange(len(data.episodes))[:MOST_STEPS]
    images_ED, states_ES = _observations(data, episode_E, np.zeros_like(episode_E))
    return _explained(_kernel(_components(images_ED)) * _kernel(states_ES), _words(data)[: len(episode_E)], episode_E)


def _words(data: DataSet) -> np.ndarray:
    """The words of each instruction: float64 (episodes, words), rows of unit length."""
    words_E = [one.instruction.lower().split() for one in data.episodes]
    every = sorted({word for words in words_E for word in words})
    bag_EW = np.array([[word in words for word in every] for words in words_E], np.float64).reshape(len(words_E), -1)
    return bag_EW / np.maximum(np.linalg.norm(bag_EW, axis=1, keepdims=True), 1e-9)


def predictability(data: DataSet) -> tuple[float, float]:
    """Share of the action's variance predicted across episodes: without the instruction, and with it."""
    episode_N, step_N = _sampled(data)
    images_ND, states_NS = _observations(data, episode_N, step_N)
    actions_NA = np.stack([data.episodes[e].actions[t] for e, t in zip(episode_N, step_N, strict=True)])
    columns = []
    for d, column in enumerate(data.actions):
        values = np.unique(actions_NA[:, d]) if column.kind == "choice" else []
        columns += [actions_NA[:, d] == value for value in values] or [actions_NA[:, d]]
    target_NA = np.stack(columns, axis=1).astype(np.float64)
    target_NA = (target_NA - target_NA.mean(axis=0)) / np.maximum(target_NA.std(axis=0), 1e-9)
    observed = _kernel(_components(images_ND)) * _kernel(states_NS)
    bag_NW = _words(data)[episode_N]
    # A product, so that the effect of a word may depend on the image.
    return _explained(observed, target_NA, episode_N), _explained(
        observed * (1 + bag_NW @ bag_NW.T) / 2, target_NA, episode_N)


def leaks_between_splits(data: DataSet) -> Iterator[Finding]:
    """The same actions and images in two splits, whatever their names."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, one in enumerate(data.fingerprints):
        groups[one.actions].append(number)
    leaked: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for group in groups.values():
        splits = {data.fingerprints[number].split for number in group}
        for rare in sorted(splits, key=lambda split: sum(data.fingerprints[n].split == split for n in group))[:-1]:
            others = [n for n in group if data.fingerprints[n].split != rare]
            pixels = np.stack([data.fingerprints[n].pixels for n in others]).astype(np.int16)
            for number in (n for n in group if data.fingerprints[n].split == rare):
                distance = np.abs(pixels - data.fingerprints[number].pixels).max(axis=1, initial=0)
                if distance.min() <= SAME_LEVELS:
                    other = others[int(distance.argmin())]
                    first, second = sorted((rare, data.fingerprints[other].split))
                    leaked[first, second].append((number, other))
    for (first, second), pairs in leaked.items():
        ones = [data.fingerprints[number] for pair in pairs for number in pair]
        shown = ", ".join(f"{data.fingerprints[a].name} = {data.fingerprints[b].name}" for a, b in pairs[:3])
        count = len({one.name for one in ones if one.split == first})
        total = sum(one.split == first for one in data.fingerprints)
        same = "actions and images" if data.actions else "images"
        yield Finding("leaks_between_splits", "wrong", f"{count:,} of {total:,} records of {first!r} are in {second!r} "
                      f"too, with the same {same}: {shown}", "remove them from one of the splits, or results on it are "
                      "those of training data", [Place(one.split, one.number) for one in ones])


def _sampled(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """Episode and step of the steps that are compared: int (N,) each."""
    each = max(2, min(STEPS_OF_EPISODE, MOST_STEPS // len(data.episodes)))
    pairs = [(e, int(t)) for e, episode in enumerate(data.episodes) if len(episode)
             for t in np.unique(np.linspace(0, len(episode) - 1, each).round())]
    pairs = pairs[:: -(-len(pairs) // MOST_STEPS)]
    return np.array([e for e, _ in pairs]), np.array([t for _, t in pairs])


def _observations(data: DataSet, episode_N: np.ndarray, step_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails, float32 (N, pixels), and states in standard deviations, float64 (N, S)."""
    pairs = [(data.episodes[e], t) for e, t in zip(episode_N, step_N, strict=True)]
    images = [np.concatenate([np.zeros(0), *(images[t].ravel() for images in episode.thumbnails.values())])
              for episode, t in pairs]
    states = np.stack([episode.states[t] for episode, t in pairs])
    return np.stack(images).astype(np.float32), states / np.maximum(states.std(axis=0), 1e-9)


def _opposite(scaled: np.ndarray, other_scaled: np.ndarray, action: np.ndarray, other: np.ndarray) -> bool:
    """Whether two actions point apart; of choices and buttons alone, whether they differ."""
    if not len(scaled):
        return bool((action != other).any())
    norms = float(np.linalg.norm(scaled)), float(np.linalg.norm(other_scaled))
    if min(norms) < AT_REST * np.sqrt(len(scaled)):
        return False
    return float(scaled @ other_scaled) < OPPOSITE * norms[0] * norms[1]


def _components(images_ND: np.ndarray) -> np.ndarray:
    """The 32 principal components of the images, which keep what varies."""
    if not images_ND.size:
        return images_ND
    centred = images_ND - images_ND.mean(axis=0)
    if len(centred) > centred.shape[1]:
        return centred @ np.linalg.eigh(centred.T @ centred)[1][:, -32:]
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors[:, -32:] * np.sqrt(np.maximum(values[-32:], 0))


def _kernel(features_ND: np.ndarray) -> np.ndarray:
    """Gaussian kernel (N, N) of the width of the median distance; ones without features."""
    squares = (features_ND**2).sum(axis=1)
    distance = np.maximum(squares[:, None] + squares[None] - 2 * features_ND @ features_ND.T, 0)
    return np.exp(-distance / max(float(np.median(distance)), 1e-9))


def _explained(kernel: np.ndarray, target_NA: np.ndarray, episode_N: np.ndarray) -> float:
    """Share of the targets' variance that ridge regression predicts in episodes that it has not seen."""
    error = total = 0.0
    for fold in range(FOLDS):
        test = episode_N % FOLDS == fold
        train = ~test
        mean = target_NA[train].mean(axis=0)
        regularised = kernel[np.ix_(train, train)] + RIDGE * np.eye(int(train.sum()))
        weights = np.linalg.solve(regularised, target_NA[train] - mean)
        error += float(((kernel[np.ix_(test, train)] @ weights + mean - target_NA[test]) ** 2).sum())
        total += float(((target_NA[test] - mean) ** 2).sum())
    return 1 - error / max(total, 1e-9)
