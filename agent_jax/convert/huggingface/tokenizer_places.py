"""Finds the tokenizer of an OPT, also if it is not in the folder of the weights.

    the folder, its parent (a trainer's checkpoint-10/), config.json's _name_or_path, facebook/opt-* in the hub's cache

All OPTs of Meta share one tokenizer. It must fit the number of rows of the weights' token table.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from agent_jax.actions.text_tokenizer import load_tokenizer
from agent_jax.convert.huggingface.plan import TABLE_MULTIPLE
from agent_jax.convert.huggingface.weights_folder import config_path, read_config
from agent_jax.help_pages import help_page
from agent_jax.hub import cached_folders

FAMILY = "facebook/opt-*"


def tokenizer_of(language: str | pathlib.Path) -> str:
    """The folder of the tokenizer for OPT's weights; logs a warning if it is another than that of the weights.

    Args:
        language: folder, file or hub name of an OPT.

    Raises:
        FileNotFoundError: no folder has a tokenizer that fits; lists them.
        ValueError: the tokenizer in the folder of the weights is damaged.
    """
    own = config_path(language).parent
    try:
        load_tokenizer(str(own))
        return str(own)
    except FileNotFoundError:
        pass
    config, searched = read_config(language), []
    for place in _places(own, config):
        found = _size(place)
        searched.append(f"{place} ({f'{found:,} ids' if found else 'none'})")
        rows = config.get("vocab_size")
        if found and type(rows) is int and 0 <= rows - found < TABLE_MULTIPLE:
            logging.getLogger(__name__).warning("%s: no tokenizer in the folder of the weights; took that of %s, which "
                                                "has %d ids for vocab_size=%d", own, place, found, rows)
            return str(place)
    raise FileNotFoundError(
        f"{own}: no tokenizer in this folder (vocab.json and merges.txt, or tokenizer.json), and none for "
        f"vocab_size={config.get('vocab_size')!r} in {', '.join(searched) or 'any other place'}. Set "
        "--config.vocabulary.tokenizer=PATH; or download OPT's into the cache (hf download facebook/opt-125m "
        "vocab.json merges.txt)" + help_page("guides/weights.md", "from-hf"))


def _places(own: pathlib.Path, config: dict[str, Any]) -> Iterator[pathlib.Path]:
    yield own.parent
    name = config.get("_name_or_path")
    if isinstance(name, str) and name and len(name) < 1000:
        local = pathlib.Path(name).expanduser()
        if local.is_dir():
            yield local
        yield from cached_folders(name, "merges.txt")
    yield from cached_folders(FAMILY, "merges.txt")


def _size(place: pathlib.Path) -> int:
    """Ids of the tokenizer there; 0: no readable one."""
    try:
        return load_tokenizer(str(place)).size
    except (OSError, ValueError):
        return 0
