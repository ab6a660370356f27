"""Where the tokenizer of an OPT is looked for when it does not lie beside the weights.

    the folder, its parent (a trainer's checkpoint-10/), config.json's _name_or_path, facebook/opt-* in the hub's cache

All OPTs of Meta share one tokenizer. Only one that has the ids of the weights' token table is taken.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from agent_jax.actions.text_tokenizer import load_tokenizer
from agent_jax.convert.huggingface.hub import cached_folders
from agent_jax.convert.huggingface.plan import TABLE_MULTIPLE
from agent_jax.convert.huggingface.weights_folder import config_path, read_config

FAMILY = "facebook/opt-*"


def tokenizer_of(language: str | pathlib.Path) -> str:
    """The folder of the tokenizer for OPT's weights; one that does not lie beside them is said in the log.

    Args:
        language: folder, file or hub name of an OPT.

    Raises:
        FileNotFoundError: none of the places holds one; lists them.
        ValueError: the files beside the weights are damaged.
    """
    beside = config_path(language).parent
    try:
        load_tokenizer(str(beside))
        return str(beside)
    except FileNotFoundError:
        pass
    config, looked_at = read_config(language), []
    for place in _places(beside, config):
        found = _size(place)
        looked_at.append(f"{place} ({f'{found:,} ids' if found else 'none'})")
        rows = config.get("vocab_size")
        if found and type(rows) is int and 0 <= rows - found < TABLE_MULTIPLE:
            logging.getLogger(__name__).warning("%s: no tokenizer beside the weights; took that of %s, which has %d "
                                                "ids for vocab_size=%d", beside, place, found, rows)
            return str(place)
    raise FileNotFoundError(
        f"{beside}: no tokenizer beside the weights (vocab.json and merges.txt, or tokenizer.json), and none for "
        f"vocab_size={config.get('vocab_size')!r} in {', '.join(looked_at) or 'any other place'}. Set "
        "--config.vocabulary.tokenizer=PATH; or fetch OPT's (hf download facebook/opt-125m vocab.json merges.txt), "
        "where it is found by itself")


def _places(beside: pathlib.Path, config: dict[str, Any]) -> Iterator[pathlib.Path]:
    yield beside.parent
    name = config.get("_name_or_path")
    if isinstance(name, str) and name and len(name) < 1000:
        local = pathlib.Path(name).expanduser()
        if local.is_dir():
            yield local
        yield from cached_folders(name, "merges.txt")
    yield from cached_folders(FAMILY, "merges.txt")


def _size(place: pathlib.Path) -> int:
    """Ids of the tokenizer there; 0: there is none that can be read."""
    try:
        return load_tokenizer(str(place)).size
    except (OSError, ValueError):
        return 0
