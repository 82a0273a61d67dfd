"""The keys under which values and pictures are logged: built and parsed here, nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

OVER_CONTROLS = "_over_controls"
"""End of a metric's name: by how much a method beats the best control, on images that both have."""
_INDEX = "dataloader_idx_"


@dataclass(frozen=True)
class LogKey:
    """Where a value or pictures are logged: ``train/<term>/<metric>``, ``val/xai/<name>/<metric>``, ``test/xai/...``.

    Attributes:
        stage: ``train``, ``val`` or ``test``.
        name: Name of the attribution, as the user chose it, of the callback that shows several, or of the term; it may
            hold slashes.
        metric: Name of the metric; None for pictures.
        dataloader_idx: Index of the dataloader, where there are several; scalars are to be logged with
            ``add_dataloader_idx=False``.

    Example:
        >>> str(LogKey("val", "gradcam", "AverageDrop"))
        'val/xai/gradcam/AverageDrop'
        >>> str(LogKey("test", "maps", dataloader_idx=1))
        'test/xai/maps/dataloader_idx_1'
        >>> LogKey.parse("train/guided_gradient/layer3/cosine")
        LogKey(stage='train', name='guided_gradient/layer3', metric='cosine', dataloader_idx=None)
    """

    stage: str
    name: str
    metric: str | None = None
    dataloader_idx: int | None = None

    def __str__(self) -> str:
        index = None if self.dataloader_idx is None else f"{_INDEX}{self.dataloader_idx}"
        room = None if self.stage == "train" else "xai"
        return "/".join(part for part in (self.stage, room, self.name, self.metric, index) if part is not None)

    @classmethod
    def parse(cls, text: str) -> LogKey | None:
        """The key that was written so, or None for keys of others, such as ``train/loss`` and ``lr-Adam``.

        A single word after the room is a name (``val/xai/maps``); of several the last one is the metric.

        Example:
            >>> LogKey.parse("val/xai/lrp/AverageDrop/dataloader_idx_1").dataloader_idx
            1
            >>> print(LogKey.parse("val/loss"))
            None
        """
        stage, *rest = text.split("/")
        if stage == "train" and len(rest) >= 2:
            return cls(stage, "/".join(rest[:-1]), rest[-1])
        if stage not in ("val", "test") or rest[:1] != ["xai"] or len(rest) < 2:
            return None
        *parts, last = rest[1:]
        number = last.removeprefix(_INDEX)
        index = int(number) if parts and last != number and number.isdecimal() else None
        parts = parts if index is not None else [*parts, last]
        name, metric = (parts[:-1], parts[-1]) if len(parts) > 1 else (parts, None)
        return cls(stage, "/".join(name), metric, index)

    @classmethod
    def parse_pictures(cls, text: str) -> LogKey | None:
        """The same for keys of pictures, which name no metric: all that follows is the name.

        Example:
            >>> LogKey.parse_pictures("val/xai/maps/of birds/dataloader_idx_0")
            LogKey(stage='val', name='maps/of birds', metric=None, dataloader_idx=0)
        """
        key = cls.parse(text)
        if key is None or key.metric is None:
            return key
        return cls(key.stage, f"{key.name}/{key.metric}", None, key.dataloader_idx)
