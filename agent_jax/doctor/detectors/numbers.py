"""Detectors that look at actions, states and times alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from agent_jax.doctor.episodes import Column, DataSet, EpisodeRecord
from agent_jax.doctor.finding import Finding, Place, place_of

LEADS = range(-2, 6)  # steps that an action may lead the change of the state by; 1: it acts in its own step
GOOD_LEADS = (1, 2)  # 2: a controller that answers one step later
LAG_PEAK = 0.4  # least correlation at the best lead: below, the state does not follow this action
LAG_MARGIN = 0.1  # by which the best lead must beat every good one
LAG_STEPS = 50  # of all episodes, to compute a correlation
CLIPPED_SHARE = 0.25  # of the values at the exact minimum or maximum; a clipped signal piles up there
FEW_VALUES = 8  # distinct ones: a switch, not a clipped number
TWO_ENDED = 0.9  # share of the values in the outer tenths of the range: a gripper that is open or closed
SIGN_PEAK = 0.5  # correlation of gripper action and state in an episode, to know its sign
SIGN_KNOWN = 0.5  # share of the episodes whose sign is known: else the state follows something else, as an object
GRIPPER_STEPS = 3  # that a gripper takes to answer
JITTER = 0.2  # standard deviation of the intervals over their median; below, frames and rows still match
GAP = 2.5  # intervals, from which on steps are missing
RATE_ERROR = 0.05  # of the declared rate


def unusable_values(data: DataSet) -> Iterator[Finding]:
    """Numbers that are not finite, and episodes without an instruction."""
    not_finite = [place_of(episode, np.argwhere(~np.isfinite(np.hstack([episode.actions, episode.states])))[0][0])
                  for episode in data.episodes if not np.isfinite(np.hstack([episode.actions, episode.states])).all()]
    if not_finite:
        yield Finding("unusable_values", "wrong", f"actions or states of {len(not_finite):,} episodes are not finite "
                      f"numbers, first at {not_finite[0].name}", "leave these episodes out", not_finite)
    silent = [place_of(episode) for episode in data.episodes if not episode.instruction.strip()]
    if silent:
        yield Finding("unusable_values", "wrong", f"{len(silent):,} of {len(data.episodes):,} episodes have no "
                      "instruction", "set --config.instruction_text in prepare, or leave them out", silent)


def action_lag(data: DataSet) -> Iterator[Finding]:
    """The action does not lead the state by one step: it trails it, or lies too far ahead.

    Cross-correlation of the action (of its changes, if it is a target) with the changes of the state, after
    prewhitening by the action's autoregression (Box and Jenkins, 1976), without which a smooth signal has no peak.
    """
    found: dict[int, list[str]] = {}
    for d in data.numbers():
        if data.actions[d].is_gripper or _is_switch(data.stacked("actions")[:, d]):  # slow, and stopped by the object
            continue
        best = max((lead_of(data.episodes, d, s, absolute) for s in range(len(data.states))
                    for absolute in _kinds(data.absolute)), key=lambda result: result[1], default=None)
        if best is None:
            continue
        lead, peak, good = best
        if peak >= LAG_PEAK and lead not in GOOD_LEADS and peak >= good + LAG_MARGIN:
            found.setdefault(lead, []).append(f"{data.actions[d].name} (correlation {peak:.2f}, {good:.2f} expected)")
    for lead, names in found.items():
        how = (f"trails the state by {1 - lead} step{'s' * (lead < 0)}: it describes a motion that is over" if lead < 1
               else f"leads the state by {lead} steps: it acts later than its image says")
        yield Finding("action_lag", "wrong", f"{', '.join(names[:4])} {how}; expected a lead of 1 step",
                      f"shift the actions by {abs(lead - 1)} step{'s' * (abs(lead - 1) > 1)}, or correct the "
                      "recorder's time stamps", [place_of(episode) for episode in data.episodes])


def lead_of(episodes: Sequence[EpisodeRecord], action: int, state: int, absolute: bool) -> tuple[int, float, float]:
    """The lead of an action over a state: in steps, its correlation (absolute value), and the best of a good lead."""
    pairs: dict[int, list[np.ndarray]] = {lead: [] for lead in LEADS}
    for episode in episodes:
        if len(episode) <= len(LEADS) + 3:
            continue
        act = episode.actions[:, action]
        act = np.diff(act, prepend=act[0]) if absolute else act
        moved = np.diff(episode.states[:, state])  # moved[t]: from step t to t + 1
        moved, act = (_whitened(signal, act) for signal in (moved, act))
        for lead, of_lead in pairs.items():
            shifted = np.arange(len(act)) + lead - 1
            there = (shifted >= 1) & (shifted < len(moved)) & (np.arange(len(act)) >= 2)
            of_lead.append(np.stack([act[there], moved[shifted[there]]]))
    by_lead = {lead: _correlation(np.concatenate(of_lead, axis=1)) for lead, of_lead in pairs.items() if of_lead}
    if not by_lead:
        return 1, 0.0, 0.0
    lead = max(by_lead, key=lambda lead: by_lead[lead])
    return lead, by_lead[lead], max(by_lead[good] for good in GOOD_LEADS)


def constant_dimensions(data: DataSet) -> Iterator[Finding]:
    """Actions or states that never change."""
    for what, columns in (("actions", data.actions), ("states", data.states)):
        if not columns:
            continue
        values = data.stacked(what)  # pyright: ignore[reportArgumentType]
        constant = [f"{column.name} = {values[0, d]:g}" for d, column in enumerate(columns)
                    if np.ptp(values[:, d]) <= 1e-6 * max(1.0, abs(values[0, d]))]
        if constant:
            yield Finding("constant_dimensions", "note", f"{what} that are the same in all {len(values):,} steps: "
                          f"{', '.join(constant)}", "leave them out of the spec, or check the recorder",
                          [place_of(data.episodes[0])])


def clipped_dimensions(data: DataSet) -> Iterator[Finding]:
    """Numbers that pile up at their extreme: saturated or clipped."""
    for what, columns in (("actions", data.actions), ("states", data.states)):
        if not columns:
            continue
        values = data.stacked(what)  # pyright: ignore[reportArgumentType]
        for d, column in enumerate(columns):
            share, end = _clipped(values[:, d], column)
            if share < CLIPPED_SHARE:
                continue
            by_episode = sorted(((one, np.flatnonzero(getattr(one, what)[:, d] == end)) for one in data.episodes),
                                key=lambda pair: -len(pair[1]))
            yield Finding("clipped_dimensions", "note", f"{column.name}: {share:.0%} of the values are exactly "
                          f"{end:g}, its {'greatest' if end == values[:, d].max() else 'least'}", "check the bounds "
                          "that the recorder clips to, and the unit; intended if the controller saturates",
                          [place_of(episode, steps[0]) for episode, steps in by_episode if len(steps)])


def gripper_sign(data: DataSet) -> Iterator[Finding]:
    """Opening and closing have exchanged their signs in some episodes."""
    actions = [d for d, column in enumerate(data.actions) if column.is_gripper and column.kind != "choice"]
    states = [d for d, column in enumerate(data.states) if column.is_gripper]
    for d in actions:
        signs_KE = np.array([[_gripper_sign(episode, d, s, change=change) for episode in data.episodes]
                             for s in states for change in (False, True)]).reshape(-1, len(data.episodes))
        best_E = max(signs_KE, key=lambda signs: float(np.median(np.abs(signs))), default=np.zeros(len(data.episodes)))
        known_E = np.abs(best_E) >= SIGN_PEAK
        by_state = {episode.name: float(sign) for episode, sign, known in
                    zip(data.episodes, best_E, known_E, strict=True) if known and known_E.mean() >= SIGN_KNOWN}
        yield from _minority(data, data.actions[d].name, by_state, "the gripper's state")
        if not states:  # then by what grippers do: within one task they all close, or all open
            for text in sorted({episode.instruction for episode in data.episodes}):
                of_task = {episode.name: _first_to_last(episode.actions[:, d], data.stacked("actions")[:, d])
                           for episode in data.episodes if episode.instruction == text}
                yield from _minority(data, data.actions[d].name, of_task, f"other episodes of {text!r}")


def uneven_times(data: DataSet) -> Iterator[Finding]:
    """Time stamps that jitter, run backwards, have gaps, or belie the declared rate."""
    timed = [(episode, np.diff(episode.times_s)) for episode in data.episodes if len(episode.times_s) > 2]
    if not timed:
        return
    kinds: list[tuple[str, str, list[Place]]] = [
        ("time stamps do not grow", "sort the rows, or record them again",
         [place_of(episode, np.flatnonzero(interval <= 0)[0] + 1) for episode, interval in timed
          if (interval <= 0).any()]),
        (f"intervals between steps vary by more than {JITTER:.0%} of their median",
         "resample the data to an even rate, or stamp them when they are measured",
         [place_of(episode, np.argmax(interval) + 1) for episode, interval in timed
          if (interval > 0).all() and np.std(interval[interval < GAP * np.median(interval)]) > JITTER *
          np.median(interval)]),
        (f"steps are missing: intervals of more than {GAP:g} times the median",
         "cut the episodes there, since the actions do not explain the change of the image",
         [place_of(episode, np.argmax(interval) + 1) for episode, interval in timed
          if (interval > GAP * np.median(interval)).any() and np.median(interval) > 0]),
    ]
    if data.rate_hz:
        kinds.append((f"the rate is not the declared {data.rate_hz:g} Hz but about "
                      f"{1 / max(float(np.median([np.median(interval) for _, interval in timed])), 1e-9):.4g} Hz",
                      "correct the declared rate", [
            place_of(episode) for episode, interval in timed
            if abs(np.median(interval) * data.rate_hz - 1) > RATE_ERROR]))
    for text, advice, places in kinds:
        if places:
            yield Finding("uneven_times", "wrong", f"{text}, in {len(places):,} of {len(timed):,} episodes", advice,
                          places)


def _kinds(absolute: bool | None) -> tuple[bool, ...]:
    return (False, True) if absolute is None else (absolute,)


def _whitened(signal: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The signal without what the first-order autoregression of `by` predicts."""
    centred = by - by.mean()
    power = float(centred[:-1] @ centred[:-1])
    phi = float(centred[:-1] @ centred[1:]) / power if power > 0 else 0.0
    return signal - phi * np.concatenate([signal[:1], signal[:-1]])


def _correlation(pair: np.ndarray) -> float:
    """Absolute correlation of two rows; 0 if one is constant, or they are short."""
    if pair.shape[1] < LAG_STEPS or min(pair.std(axis=1)) < 1e-9:
        return 0.0
    return abs(float(np.corrcoef(pair)[0, 1]))


def _clipped(values: np.ndarray, column: Column) -> tuple[float, float]:
    """Share of the values at an end of their range, and that end; 0 for what is no number with many values."""
    if column.kind != "number" or _is_switch(values):
        return 0.0, 0.0
    return max((float(np.mean(values == end)), float(end)) for end in (values.min(), values.max()))


def _is_switch(values: np.ndarray) -> bool:
    """Whether a number has few values, or lies at the ends of its range: a gripper, or a constant."""
    low, high = float(values.min()), float(values.max())
    tenth = (high - low) / 10
    at_ends = (values <= low + tenth) | (values >= high - tenth)
    return len(np.unique(values)) <= FEW_VALUES or float(np.mean(at_ends)) > TWO_ENDED


def _gripper_sign(episode: EpisodeRecord, action: int, state: int, *, change: bool) -> float:
    """Correlation of the gripper's action with its state some steps later, or with the change until then."""
    if len(episode) <= GRIPPER_STEPS + 2:
        return 0.0
    act, later = episode.actions[:-GRIPPER_STEPS, action], episode.states[GRIPPER_STEPS:, state]
    moved = later - episode.states[:-GRIPPER_STEPS, state] if change else later - later.mean()
    act = act - act.mean()
    norm = float(np.linalg.norm(act) * np.linalg.norm(moved))
    return float(act @ moved) / norm if norm > 1e-9 else 0.0


def _first_to_last(values: np.ndarray, all_values: np.ndarray) -> float:
    """1.0 if the values go from the lower to the upper half of the range, -1.0 for the reverse, else 0.0."""
    middle = (float(all_values.min()) + float(all_values.max())) / 2
    tenth = max(1, len(values) // 10)
    first, last = values[:tenth].mean() > middle, values[-tenth:].mean() > middle
    return float(last) - float(first)


def _minority(data: DataSet, name: str, sign_of: dict[str, float], against: str) -> Iterator[Finding]:
    """A finding of the episodes whose sign is that of fewer episodes."""
    negative, positive = sum(sign < 0 for sign in sign_of.values()), sum(sign > 0 for sign in sign_of.values())
    if not min(negative, positive):
        return
    rare = -1.0 if negative <= positive else 1.0
    places = [place_of(episode) for episode in data.episodes if sign_of.get(episode.name, 0.0) * rare > 0]
    yield Finding("gripper_sign", "wrong", f"{name} has the opposite sign in {len(places):,} episodes, compared with "
                  f"{max(negative, positive):,} others by {against}", "flip the sign in these episodes; one policy "
                  "cannot learn both", places)
