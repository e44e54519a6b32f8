"""Where the replicas of a `kvstrata fleet` command are, and what its prompt is."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstrata.cli.scrape import fetch_metrics
from kvstrata.errors import ConfigError
from kvstrata.fleet.discovery import discover, infos
from kvstrata.fleet.replica import Address
from kvstrata.router.tokenizers import load_tokenizer

Tokens = npt.NDArray[np.uint32]


def addresses(replicas: Sequence[str], urls: Sequence[str], topic: str) -> list[Address]:
    """All that were named.

    Args:
        replicas: `NAME=EVENTS[,REPLAY]`; of one name, one for each data-parallel rank in order.
        urls: of engines that say themselves where their events are.
        topic: of the events of `replicas`.

    Raises:
        ConfigError: one that cannot be understood or found, or none at all.
    """
    ranks: dict[str, list[tuple[str, str | None]]] = {}
    for text in replicas:
        name, equals, where = text.partition("=")
        events, _, replay = where.partition(",")
        if not (name and equals and events):
            raise ConfigError(
                f"--replica takes NAME=EVENTS[,REPLAY], such as "
                f"a=tcp://127.0.0.1:5557,tcp://127.0.0.1:5558; got {text!r}"
            )
        ranks.setdefault(name, []).append((events, replay or None))
    found = [Address(name, tuple(ends), topic=topic) for name, ends in ranks.items()]
    for url in urls:
        found.append(discover(url.partition("://")[2] or url, url, infos(fetch_metrics(url))))
    if not found:
        raise ConfigError("name at least one engine: --replica NAME=EVENTS[,REPLAY] or --url URL")
    return found


def prompt(path: Path, tokenizer: Path | None) -> Tokens:
    """Token ids (uint32[n]) of a file: a JSON array of them, or text for the tokenizer.

    Raises:
        ConfigError: neither.
    """
    if tokenizer is not None:
        return np.array(load_tokenizer(tokenizer).encode(path.read_text()).ids, np.uint32)
    try:
        ids = json.loads(path.read_bytes())
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise ValueError("it holds something else")
        if any(not 0 <= one < 1 << 31 for one in ids):
            raise ValueError("token ids lie between 0 and 2147483647")
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no JSON array of token ids ({error}); for text give --tokenizer with the "
            f"directory of the model"
        ) from None
    return np.array(ids, np.uint32)
