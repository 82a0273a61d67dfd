"""Images in WebDataset shards: tar files of samples, each with an image and a file ``cls`` with its class index."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_xai.images import UNREADABLE, decoded, upright

_IMAGES = ("jpg", "jpeg", "png", "webp")
_BUFFER = 1000
"""Samples among which the next training image is drawn; the shards' order is shuffled, too."""


class ImagesInShards(IterableDataset[tuple[Any, int]]):
    """A stream of images from shards, split over the processes of all nodes and over their workers.

    An image that cannot be read comes as its name. Of a damaged shard what follows the damage is left out, with a
    warning that names the shard.

    Args:
        urls: Shards in WebDataset's notation, ``train-{0000..0146}.tar`` say; anything that WebDataset opens.
        transform: From the image to a tensor (C,H,W).
        endless: Whether to begin again at the end, shuffled anew each time, as training wants: so every process has
            equally many steps. Otherwise every image comes once.
        seed: Seed of the shuffling; every iteration begins with the same order.

    Raises:
        ImportError: If webdataset is not installed.
        FileNotFoundError: If a shard is not there.

    Example:
        >>> ImagesInShards("none-{0..1}.tar", lambda image: image)
        Traceback (most recent call last):
        FileNotFoundError: `--data` expected WebDataset shards, found no none-0.tar (2 missing).
    """

    def __init__(self, urls: str, transform: Callable[[Any], Tensor], *, endless: bool = False, seed: int = 0) -> None:
        self.shards = _webdataset().shardlists.expand_urls(urls)
        missing = [url for url in self.shards if not re.match(r"\w+:", url) and not Path(url).is_file()]
        if missing:
            raise FileNotFoundError(
                f"`--data` expected WebDataset shards, found no {missing[0]} ({len(missing)} missing)."
            )
        self.transform = transform
        self.endless = endless
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        wds = _webdataset()
        skip = {"handler": wds.warn_and_continue}
        urls = _endless(self.shards, self.seed) if self.endless else iter(self.shards)
        mine = wds.split_by_worker(wds.split_by_node({"url": url} for url in urls))
        files = wds.tariterators.tar_file_expander(_closed(wds.tariterators.url_opener(mine, **skip)), **skip)
        samples = wds.tariterators.group_by_keys(files, **skip)
        if self.endless:
            samples = wds.shuffle(_BUFFER, seed=self.seed)(samples)
        return (_decoded(sample, self.transform) for sample in samples)


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("Shards expected the package webdataset: pip install -e '.[webdataset]'.") from error
    return webdataset


def _endless(shards: list[str], seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    while True:
        yield from rng.sample(shards, len(shards))


def _closed(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Close each shard once it is read, which webdataset leaves to the garbage collector."""
    for source in sources:
        try:
            yield source
        finally:
            source["stream"].close()


def _decoded(sample: dict[str, Any], transform: Callable[[Any], Tensor]) -> tuple[Any, int]:
    name = f"{sample['__url__']}/{sample['__key__']}"
    found = next((sample[kind] for kind in _IMAGES if kind in sample), None)
    if found is None or "cls" not in sample:
        has = sorted(key for key in sample if not key.startswith("__"))
        raise ValueError(f"Sample {name} expected cls and one of {', '.join(_IMAGES)}, has {', '.join(has)}.")
    label = int(sample["cls"])
    try:
        image = upright(decoded(io.BytesIO(found)))
    except UNREADABLE:
        return name, label
    return transform(image), label
