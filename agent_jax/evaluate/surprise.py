"""Does surprise show what an agent has not seen? AUROC of changed images against held-out ones.

    held-out images, one a record --> surprise --.
        |--change of camera or colour--> surprise --Mann-Whitney U / (n m)--> AUROC, with a bootstrap interval
    images of other environments ------> surprise --'

AUROC is the probability that a changed image has the larger surprise: 0.5 means that surprise says nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.data.images import prepare_image, resize
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.store.store import Store, open_store
from agent_jax.envs import CLIPS, NAMES
from agent_jax.envs.collect import demonstrations_directory
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.policy import Policy
from agent_jax.policy.observation import Prepared, prepare
from agent_jax.text_table import ruled

Frames = tuple[np.ndarray, ...]  # uint8 (size, size, 3), one a camera

CAMERA, COLOUR, ENVIRONMENT = "camera", "colour", "environment"
_RESAMPLES, _LEVEL = 1000, 0.95
_TIMED = 20  # calls


def _shifted(image: np.ndarray) -> np.ndarray:
    """Moved right by an eighth of the side; the left edge is repeated."""
    pixels = max(1, image.shape[1] // 8)
    return np.pad(image[:, :-pixels], ((0, 0), (pixels, 0), (0, 0)), mode="edge")


def _part(image: np.ndarray, place: float) -> np.ndarray:
    """A square of three quarters of the side, enlarged; `place` 0 is the upper left corner, 0.5 the centre."""
    side = max(1, image.shape[0] * 3 // 4)
    first = round(place * (image.shape[0] - side))
    return resize(np.ascontiguousarray(image[first : first + side, first : first + side]), image.shape[:2])


def _zoomed_out(image: np.ndarray) -> np.ndarray:
    """Reduced to three quarters of the side, on black."""
    side = max(1, image.shape[0] * 3 // 4)
    first = (image.shape[0] - side) // 2
    canvas = np.zeros_like(image)
    canvas[first : first + side, first : first + side] = resize(image, (side, side))
    return canvas


# Name -> kind, and the changed image of a prepared one.
CHANGES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "shift": (CAMERA, _shifted),
    "zoom in": (CAMERA, lambda image: _part(image, 0.5)),
    "zoom out": (CAMERA, _zoomed_out),
    "crop": (CAMERA, lambda image: _part(image, 0.0)),
    "other hues": (COLOUR, lambda image: np.ascontiguousarray(image[:, :, [1, 2, 0]])),
    "dark": (COLOUR, lambda image: image // 2),
    "negative": (COLOUR, lambda image: 255 - image),
}


@dataclasses.dataclass(frozen=True)
class ChangeScores:
    """Surprise of changed images."""

    kind: str  # CAMERA, COLOUR or ENVIRONMENT
    auroc: float
    ci95: tuple[float, float]
    images: int
    mean: float
    rises: float | None  # share of images whose surprise the change raises; None: they are other images
    trained: bool = False  # an environment that the checkpoint was trained on as well


@dataclasses.dataclass(frozen=True)
class SurpriseScores:
    """Surprise of held-out images of one domain, and of changed ones."""

    domain: str
    data: str
    split: str
    images: int
    masks: int
    seed: int
    mean: float
    std: float
    changes: Mapping[str, ChangeScores]
    left_out: Mapping[str, str]  # other domains without data here, with the reason
    surprise_ms: float  # median of one observation
    action_ms: float | None  # median of one action; None: the domain has none


def evaluate_surprise(trained: TrainedRun, policy: Policy, *, data: Mapping[str, str], split: str = "",
                      others: Sequence[str] = (), images: int = 200, masks: int = 4, seed: int = 0) -> SurpriseScores:
    """Compare held-out images of the policy's domain with changed ones, and with those of other environments.

    Args:
        trained: the checkpoint.
        policy: of the checkpoint.
        data: directories of data sets by domain; others are the run's own. The other domains of the run take part if
            their data are here.
        split: of the policy's domain; "": the run's validation split.
        others: directories of more data sets, of environments that the run has not seen.
        images: of each kind, at most, each from another record.
        masks: of each image.
        seed: of the draws and of the masks.

    Raises:
        FileNotFoundError, ValueError: no data set there, a data set without images, or a split with a recording of the
            training split.
    """
    if images < 2:
        raise ValueError(f"--images {images}: expected at least 2")
    domain = policy.domain
    store, split = trained.open_store(domain, data.get(domain.name, "")), trained.split(domain, split)
    trained.check_held_out(domain, store, split)
    rng = np.random.default_rng(seed)

    def surprise(frames: Sequence[Frames]) -> np.ndarray:
        """f64 (n,), the mean over the cameras."""
        return policy.surprise_of(frames, masks=masks, seed=seed).mean(axis=1, dtype=np.float64)

    held_out = drawn_images(store, split, domain.cameras, domain.image_size, images, rng)
    unchanged = surprise(held_out)
    changes = {}
    for name, (kind, change) in CHANGES.items():
        changed = surprise([tuple(map(change, one)) for one in held_out])
        changes[name] = _scores(kind, unchanged, changed, seed, paired=True)
    left_out: dict[str, str] = {}
    for name, other in trained.domains.items():
        if name == domain.name:
            continue
        try:
            other_store = _present_store(trained, other, data.get(name, ""))
            frames = drawn_images(other_store, trained.split(other), other.cameras, domain.image_size, images, rng)
        except (OSError, ValueError) as error:
            left_out[name] = " ".join(str(error).split())
            continue
        changes[name] = _scores(ENVIRONMENT, unchanged, surprise(frames), seed, trained=True)
    for path in others:
        other_store = open_store(path)
        frames = drawn_images(other_store, _any_split(other_store), _image_fields(other_store)[:1], domain.image_size,
                              images, rng)
        changes[path] = _scores(ENVIRONMENT, unchanged, surprise(frames), seed)
    return SurpriseScores(domain.name, str(store.directory), split, len(held_out), masks, seed,
                          float(unchanged.mean()), float(unchanged.std()), changes, left_out,
                          *_milliseconds(policy, store, split, held_out[0], masks))


def drawn_images(store: Store, split: str, cameras: Sequence[str], size: int, count: int, rng: np.random.Generator
                 ) -> list[Frames]:
    """What the cameras of a data set show at a random step of at most `count` random records, prepared."""
    records, found = store.split(split), []
    for number in rng.permutation(len(records))[:count].tolist():
        episode = records[number]
        step = int(rng.integers(episode.steps))
        found.append(tuple(prepare_image(episode.values(camera, step, step + 1)[0], size) for camera in cameras))
    return found


def _present_store(trained: TrainedRun, domain: Domain, path: str) -> Store:
    """As `TrainedRun.open_store`, but nothing is collected."""
    data = trained.config.data
    entry, demonstrations = data.domains.get(domain.name), data.demonstrations_of(domain.name)
    if not path and not (entry and entry.path) and demonstrations.environment in (*NAMES, CLIPS):
        path = str(demonstrations_directory(demonstrations, Path(data.directory).expanduser()))
    return open_store(path) if path else trained.open_store(domain)


def _any_split(store: Store) -> str:
    return "test" if store.splits.get("test") else max(store.splits, key=lambda name: store.splits[name])


def _image_fields(store: Store) -> list[str]:
    """The fields of a data set's cameras.

    Raises:
        ValueError: there are none.
    """
    found = [path for path, field in store.fields.items() if field.is_image and field.per_step]
    if not found:
        raise ValueError(f"{store.directory}: found no images in its steps, expected a data set with images")
    return found


def auroc(unchanged_N: np.ndarray, changed_M: np.ndarray, axis: int = -1) -> Any:
    """The probability that a changed value is larger than an unchanged one; a tie counts one half.

    It is Mann and Whitney's U (1947) by n m, from ranks; any leading axes are resamples.
    """
    from scipy.stats import rankdata  # imported here because it takes long

    n, m = unchanged_N.shape[axis], changed_M.shape[axis]
    ranks = np.moveaxis(rankdata(np.concatenate([unchanged_N, changed_M], axis=axis), axis=axis), axis, -1)
    return (ranks[..., n:].sum(axis=-1) - m * (m + 1) / 2) / (n * m)


def _scores(kind: str, unchanged: np.ndarray, changed: np.ndarray, seed: int, *, paired: bool = False,
            trained: bool = False) -> ChangeScores:
    """Scores of changed images, with a percentile bootstrap over images, in pairs if they are the same ones."""
    from scipy.stats import bootstrap  # as above

    interval = bootstrap((unchanged, changed), auroc, paired=paired, vectorized=True, n_resamples=_RESAMPLES,
                         confidence_level=_LEVEL, method="percentile",
                         rng=np.random.default_rng(seed)).confidence_interval
    return ChangeScores(kind, float(auroc(unchanged, changed)), (float(interval.low), float(interval.high)),
                        len(changed), float(changed.mean()),
                        float((changed > unchanged).mean()) if paired else None, trained)


def _milliseconds(policy: Policy, store: Store, split: str, frames: Frames, masks: int) -> tuple[float, float | None]:
    """Medians of the surprise of one observation and of one action, in the same process."""
    surprise = _median_ms(lambda: policy.surprise_of([frames], masks=masks))
    if policy.domain.spec is None:
        return surprise, None
    prepared, env_id = _observation(policy.domain, store, split, frames), "timed"
    for _ in range(policy.domain.window):  # a whole history
        policy.step([prepared], [env_id])
    action = _median_ms(lambda: policy.step([prepared], [env_id]))
    policy.forget([env_id])
    return surprise, action


def _observation(domain: Domain, store: Store, split: str, frames: Frames) -> Prepared:
    """An observation with the instruction and state of the split's first record."""
    episode = store.split(split)[0]
    state = None
    if domain.state is not None:
        state = {key: episode.values(store.step_field(key).path, 0, 1)[0] for key in domain.state.spec.fields}
    return prepare(domain, frames, episode.texts(domain.instruction)[0] or "go", state)


def _median_ms(call: Callable[[], object]) -> float:
    call()  # may compile
    times = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(times))


def format_surprise(scores: SurpriseScores) -> str:
    """The scores as text."""
    rows = [("images", "kind", "AUROC", "95% interval", "images", "mean surprise", "rises")]
    rows.append(("held out", "", "", "", str(scores.images), f"{scores.mean:.4f}", ""))
    for name, one in scores.changes.items():
        low, high = one.ci95
        rows.append((name, f"{one.kind}{', trained on' if one.trained else ''}", f"{one.auroc:.3f}",
                     f"{low:.3f} to {high:.3f}", str(one.images), f"{one.mean:.4f}",
                     "" if one.rises is None else f"{one.rises:.1%}"))
    action = "" if scores.action_ms is None else f"; an action takes {scores.action_ms:.1f} ms"
    left_out = [f"left out: {name}: {reason}" for name, reason in scores.left_out.items()]
    return "\n".join([
        f"domain {scores.domain!r}, {scores.data}, split {scores.split!r}, {scores.masks} masks an image",
        ruled(rows, words=2), *left_out, f"surprise of one observation: {scores.surprise_ms:.1f} ms{action}"])
