"""How maps are drawn: pixels, heat maps, overlays, and a panel of them with captions. Knows no logger and no file.

Figures use matplotlib's objects only, never pyplot, so that no figure list, backend or interactive window of the
training process is touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

# A map's full colour stands for this quantile of its magnitudes, but for no less than this part of the largest one.
_QUANTILE = 0.99
_LEAST_SCALE = 0.05


def heatmap(maps: Tensor) -> Tensor:
    """Colours of maps, each map on its own scale.

    Maps without negative values get a sequential colour map from zero (black, violet, orange, yellow), maps with
    negative values a diverging one that is symmetric about zero (blue, white, red). All maps of one call share the
    kind of scale. Full colour stands for the 0.99 quantile of a map's magnitudes: gradient maps have a few extreme
    pixels and would be drawn nearly empty on the scale of their maximum.

    Args:
        maps: Maps (N,H,W), any range; non-finite values are drawn as zero.

    Returns:
        Colours (N,3,H,W) in [0, 1], float32.

    Example:
        >>> heatmap(torch.tensor([[[-1.0, 0.0, 1.0]]]))[0, :, 0].T  # full blue, white, full red
        tensor([[0., 0., 1.],
                [1., 1., 1.],
                [1., 0., 0.]])
    """
    return _colours(_unit(maps))


def overlay(pixels: Tensor, maps: Tensor, alpha: float = 0.8) -> Tensor:
    """Heat maps upon the images they explain.

    The image is drawn in grey, so that every colour seen is the map's; the heat map covers it in proportion to the
    square root of the map's magnitude, so that the image stays visible where the map says nothing.

    Args:
        pixels: Images (N,3,H,W) in [0, 1], as from `to_pixels`.
        maps: Maps (N,H,W), drawn as by `heatmap`.
        alpha: Opacity at full colour, in [0, 1].

    Returns:
        Colours (N,3,H,W) in [0, 1], float32.

    Raises:
        ValueError: If the shapes do not belong together.

    Example:
        >>> overlay(torch.ones(1, 3, 1, 2), torch.tensor([[[0.0, 1.0]]]), alpha=1.0)[0, :, 0]
        tensor([[1.0000, 0.9884],
                [1.0000, 0.9984],
                [1.0000, 0.6449]])
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or maps.shape != pixels[:, 0].shape:
        raise ValueError(
            "`pixels` expected shape (N, 3, H, W) and `maps` (N, H, W), "
            f"got {tuple(pixels.shape)} and {tuple(maps.shape)}."
        )
    unit = _unit(maps)
    cover = alpha * unit.abs().sqrt()[:, None]
    return torch.lerp(_grey(pixels.float()), _colours(unit), cover)


def _unit(maps: Tensor) -> Tensor:
    maps = maps.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    # Sorted, because torch.quantile refuses large inputs.
    magnitudes = maps.abs().flatten(1).sort(1).values
    scale = torch.maximum(magnitudes[:, int(_QUANTILE * (magnitudes.shape[1] - 1))], _LEAST_SCALE * magnitudes[:, -1])
    return (maps / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]).clamp(-1, 1)


def _colours(unit: Tensor) -> Tensor:
    signed = bool((unit < 0).any())
    # An odd number of colours, so that zero is exactly white.
    table = matplotlib.colormaps["bwr" if signed else "inferno"].resampled(255)(np.arange(255))[:, :3]
    position = (unit + 1) / 2 if signed else unit
    return unit.new_tensor(table)[(position * 254).round().long()].permute(0, 3, 1, 2)


def _grey(pixels: Tensor) -> Tensor:
    luma = pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R BT.601
    return (pixels * luma).sum(1, keepdim=True).expand_as(pixels)


def as_uint8(images: Tensor) -> np.ndarray:
    """Images as arrays, the one form that all image libraries read alike.

    Args:
        images: Images (N,3,H,W) in [0, 1].

    Returns:
        An array (N,H,W,3) of uint8.

    Example:
        >>> as_uint8(torch.full((1, 3, 1, 1), 0.5)).tolist()
        [[[[128, 128, 128]]]]
    """
    return (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


# Lengths in a panel's figure, in inches, for a letter size in points.
_FONT = 8
_LINE = 0.14
_LETTER = 0.075  # a broad one: lines are broken by counting letters
_TEXT = 1.9
_MARGIN = 0.08


@dataclass(frozen=True, eq=False)
class Panel:
    """Images, what several attributions say about them, and what is known about each.

    Args:
        images: Images (N,3,H,W) in [0, 1], as from `to_pixels`.
        overlays: For each attribution its pictures (N,3,H,W) in [0, 1], as from `overlay`.
        facts: Lists of N values. ``prediction`` and ``probability`` are shown together; None is left out.

    Raises:
        ValueError: If there is no image, or if shapes or lengths differ.

    Example:
        >>> images = torch.rand(1, 3, 8, 8)
        >>> facts = {"label": ["cat"], "prediction": ["dog"], "probability": [0.871]}
        >>> Panel(images, {"gradcam": overlay(images, torch.rand(1, 8, 8))}, facts).captions
        ['label cat | predicted dog (0.87)']
    """

    images: Tensor
    overlays: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[0] == 0:
            raise ValueError(f"`images` expected shape (N, 3, H, W) with N >= 1, got {shape}.")
        for name, pictures in self.overlays.items():
            if pictures.shape != shape:
                raise ValueError(
                    f"`overlays[{name!r}]` expected the images' shape {shape}, got {tuple(pictures.shape)}."
                )
        for name, values in self.facts.items():
            if len(values) != shape[0]:
                raise ValueError(
                    f"`facts[{name!r}]` expected {shape[0]} values, one for each image, got {len(values)}."
                )

    @property
    def captions(self) -> list[str]:
        """The facts of each image in one line."""
        return [" | ".join(_phrases(facts)) for facts in self._facts_by_image()]

    def figure(self, title: str = "", *, tile: float = 1.8) -> Figure:
        """Draw one row for each image: its facts, the image, and each attribution's picture.

        Args:
            title: Heading of the figure.
            tile: Width of a picture in inches.

        Returns:
            A figure on an Agg canvas, as large as its contents need, 100 pixels to the inch.

        Example:
            >>> figure = Panel(torch.rand(2, 3, 8, 8)).figure("epoch 3")
            >>> [text.get_text() for text in figure.texts if text.get_text()]
            ['epoch 3', 'image']
        """
        columns = [("image", self.images), *self.overlays.items()]
        names = [_wrapped([name], tile) for name, _ in columns]
        facts = [_wrapped(_phrases(facts), _TEXT) for facts in self._facts_by_image()]
        width = _MARGIN + _TEXT + len(columns) * (tile + _MARGIN)
        title = _wrapped([title], width - _MARGIN)
        top = _height([title]) + _height(names) + 3 * _MARGIN
        height = tile * min(self.images.shape[2] / self.images.shape[3], 3.0)
        row = max(height, _height(facts)) + _MARGIN
        sheet = _Sheet(width, top + len(facts) * row)
        sheet.text(_MARGIN, _MARGIN, title, weight="bold")
        for i, text in enumerate(facts):
            sheet.text(_MARGIN, top + i * row, text)
        for j, (_, pictures) in enumerate(columns):
            left = _MARGIN + _TEXT + j * (tile + _MARGIN)
            sheet.text(left, top - _height([names[j]]) - _MARGIN / 2, names[j])
            for i, picture in enumerate(pictures):
                sheet.picture(left, top + i * row, tile, height, picture)
        return sheet.figure

    def _facts_by_image(self) -> list[dict[str, Any]]:
        return [{name: values[i] for name, values in self.facts.items()} for i in range(len(self.images))]


def raster(figure: Figure) -> np.ndarray:
    """The pixels of a figure.

    Args:
        figure: A figure on an Agg canvas, as from `Panel.figure`.

    Returns:
        An array (H,W,3) of uint8.

    Example:
        >>> raster(Panel(torch.rand(1, 3, 8, 8)).figure()).dtype
        dtype('uint8')
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


class _Shown(Figure):
    """A figure that notebooks show, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


class _Sheet:
    """A figure on which things are placed by inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.size = width, height
        self.figure = _Shown(figsize=self.size, dpi=100)
        self.figure.set_layout_engine("none")  # whatever the user's matplotlibrc says
        FigureCanvasAgg(self.figure)

    def text(self, left: float, top: float, text: str, weight: str = "normal") -> None:
        x, y = left / self.size[0], 1 - top / self.size[1]
        # Names come from users: a dollar sign in them is not a formula.
        style: dict[str, Any] = {"fontsize": _FONT, "fontweight": weight, "linespacing": 1.15}
        self.figure.text(x, y, text, va="top", parse_math=False, usetex=False, **style)

    def picture(self, left: float, top: float, width: float, height: float, picture: Tensor) -> None:
        x, y = left / self.size[0], 1 - (top + height) / self.size[1]
        axes = self.figure.add_axes((x, y, width / self.size[0], height / self.size[1]), xticks=[], yticks=[])
        axes.spines[:].set(color="0.8", linewidth=0.5)  # shows where a picture that is white at its border ends
        axes.imshow(as_uint8(picture[None])[0], origin="upper")


def _phrases(facts: dict[str, Any]) -> list[str]:
    known = {name: value for name, value in facts.items() if value is not None}
    if {"prediction", "probability"} <= known.keys():
        known["prediction"] = f"{known['prediction']} ({known.pop('probability'):.2f})"
    words = {"prediction": "predicted"}
    return [f"{words.get(name, name)} {_short(value)}" for name, value in known.items()]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _wrapped(texts: list[str], width: float) -> str:
    return "\n".join(line for text in texts for line in wrap(text, int(width / _LETTER), subsequent_indent="  "))


def _height(texts: list[str]) -> float:
    return _LINE * max(text.count("\n") + 1 for text in texts)
