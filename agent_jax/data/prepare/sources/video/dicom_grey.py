"""Converts stored values of monochrome DICOM to 0..255, by pydicom.

    stored --Modality LUT, or rescale--> values --window, or VOI LUT, or the cine's own range--> 0..255

    searched in:     the frame's functional group   the group that all frames share   the top level of the header

The first of the three places that has a transformation applies: each frame of an enhanced image may have its own slope
and window. Within a place a window has precedence over a VOI LUT; of several windows the first applies. Without either,
8 bits are shown as they are, and more bits over the range of the values in the cine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing


@dataclasses.dataclass(frozen=True)
class GreyScale:
    """The conversion of one frame's values to 0..255."""

    modality: Dataset | None  # for pydicom's apply_modality_lut; None: stored values
    window: Dataset | None  # for apply_windowing
    table: Dataset | None  # for apply_voi, if there is no window
    top: int = 255  # largest value of the table's depth

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Rescaled, or looked up in the Modality LUT."""
        if self.modality is None:
            return stored
        if "ModalityLUTSequence" in self.modality:
            stored = _within(stored, self.modality.ModalityLUTSequence[0])
        return apply_modality_lut(stored, self.modality)

    def grey(self, stored: np.ndarray, span: tuple[float, float]) -> np.ndarray:
        """uint8 of the same shape; `span` maps to 0..255 if the header has neither window nor VOI LUT."""
        values = self.values(stored)
        if self.window is not None:
            shown = apply_windowing(values, self.window)
        elif self.table is not None:
            [item] = self.table.VOILUTSequence
            shown = apply_voi(_within(values, item), self.table) * (255 / self.top)
        else:
            low, high = span
            shown = (values - low) * (255 / max(high - low, 1e-6))
        return np.rint(np.clip(shown, 0, 255)).astype(np.uint8)

    @property
    def needs_span(self) -> bool:
        """Whether the header has neither window nor VOI LUT."""
        return self.window is None and self.table is None


def grey_scale(header: Any, frame: int) -> GreyScale:
    """The header's conversion of a frame.

    Raises:
        ValueError: a number is not finite, or a table has a form that DICOM does not define.
    """
    modality = _first(_modality(place, header) for place in _places(header, frame, "PixelValueTransformationSequence"))
    for place in _places(header, frame, "FrameVOILUTSequence"):
        if window := _window(place):
            return GreyScale(modality, window, None)
        if item := _voi_item(place):
            table = Dataset()
            table.file_meta, table.VOILUTSequence = header.file_meta, [_lookup(item)]
            return GreyScale(modality, None, table, 2 ** int(item.LUTDescriptor[2]) - 1)
    return GreyScale(modality, None, None)


def stored_span(header: Any) -> tuple[float, float] | None:
    """The values shown as 0 and 255 for 8 bits or fewer; None: the cine's own range."""
    per_frame = any(group.get("PixelValueTransformationSequence") for group in
                    header.get("PerFrameFunctionalGroupsSequence") or ())
    scale = grey_scale(header, 0)
    if int(header.BitsStored) > 8 or per_frame or (scale.modality and "ModalityLUTSequence" in scale.modality):
        return None
    least = -(2 ** (int(header.BitsStored) - 1)) if int(header.PixelRepresentation) else 0
    ends = scale.values(np.asarray([least, least + 2 ** int(header.BitsStored) - 1]))
    return float(ends.min()), float(ends.max())


def _places(header: Any, frame: int, group: str) -> list[Any]:
    """The places of a functional group, in order of precedence."""
    per_frame, shared = (header.get(f"{name}FunctionalGroupsSequence") or () for name in ("PerFrame", "Shared"))
    places = [*per_frame[frame : frame + 1], *shared[:1]]
    return [*(place[group].value[0] for place in places if place.get(group)), header]


def _first(found: Iterable[Dataset | None]) -> Dataset | None:
    return next((one for one in found if one is not None), None)


def _modality(place: Any, header: Any) -> Dataset | None:
    if place.get("ModalityLUTSequence"):
        made = Dataset()
        made.file_meta = header.file_meta
        made.ModalityLUTSequence = [_lookup(place.ModalityLUTSequence[0])]
        return made
    slope, intercept = _number(place, "RescaleSlope"), _number(place, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    made = Dataset()
    made.RescaleSlope, made.RescaleIntercept = 1.0 if slope is None else slope, intercept or 0.0
    return made


def _window(place: Any) -> Dataset | None:
    """A window that maps to 0..255, the pixel range that pydicom's windowing fills."""
    centre, width = _number(place, "WindowCenter"), _number(place, "WindowWidth")
    if centre is None or width is None or width <= 0:  # some writers store 0, 0 for no window
        return None
    made = Dataset()
    made.PhotometricInterpretation, made.BitsStored, made.PixelRepresentation = "MONOCHROME2", 8, 0
    made.WindowCenter, made.WindowWidth = centre, width
    function = str(place.get("VOILUTFunction") or "LINEAR").upper()
    # LINEAR subtracts one from the width, so DICOM requires at least 1; smaller rescaled widths exist.
    made.VOILUTFunction = "LINEAR_EXACT" if function == "LINEAR" and width < 1 else function
    return made


def _voi_item(place: Any) -> Dataset | None:
    items = place.get("VOILUTSequence")
    if not items or "LUTDescriptor" not in items[0] or "LUTData" not in items[0]:
        return None
    if not 1 <= items[0].LUTDescriptor[2] <= 16:
        raise ValueError(f"VOILUTSequence: found a table of {items[0].LUTDescriptor[2]} bits, expected 1 to 16")
    return items[0]


def _lookup(item: Any) -> Dataset:
    """A table as one of 16 bits: pydicom looks up 8 bit tables by 8 bits of the value, and does not support 12."""
    entries, first, _ = (int(value) for value in item.LUTDescriptor)
    made = Dataset()
    made.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [entries or 2**16, first, 16])
    data = item["LUTData"]
    if data.VR == "OW" and len(data.value) < 2 * (entries or 2**16):  # one byte an entry
        made.add_new("LUTData", "US", list(data.value))
    else:
        made.add(data)
    return made


def _within(values: np.ndarray, item: Dataset) -> np.ndarray:
    """Whole values clipped to the table's, as DICOM requires; pydicom would wrap them around."""
    entries, first, _ = item.LUTDescriptor
    return np.clip(np.rint(values), first, first + entries - 1).astype(np.int64)


def _number(place: Any, name: str) -> float | None:
    """The value, or the first of several."""
    value = place.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    if not math.isfinite(float(value)):
        raise ValueError(f"{name}: found {value}, expected a finite number")
    return float(value)
