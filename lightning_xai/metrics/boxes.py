"""Where the evidence is: boxes and masks, and what lies near them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Boxes: TypeAlias = Tensor | Sequence[Tensor]
"""Where the evidence is: bool masks (N,H,W), or for each image its boxes (M,4), xyxy in pixels, M any number."""


def box_masks(boxes: Boxes, height: int, width: int) -> Tensor:
    """Boxes as masks; several boxes of one image are united.

    Boxes are ``(xmin, ymin, xmax, ymax)`` in pixels, maxima exclusive, as in torchvision: (0, 0, 2, 1) holds two
    pixels. A pixel belongs to a box if its centre does, ``xmin <= column + 1/2 < xmax``, which decides for fractional
    boxes; what lies outside the image is cut off. A box that holds no centre of a pixel is empty. (Pascal VOC's own
    files count from 1 and include the maxima: subtract 1 from the minima.)

    Args:
        boxes: For each image its boxes (M,4), M may be 0; a tensor (N,M,4) will do where M is the same for all.
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        Masks (N,H,W), bool, on the boxes' device.

    Raises:
        ValueError: If boxes have another shape, or a minimum above its maximum.

    Example:
        >>> box_masks([torch.tensor([[0, 0, 2, 1], [3, 0, 9, 9]])], height=2, width=4).int()
        tensor([[[1, 1, 0, 1],
                 [0, 0, 0, 1]]], dtype=torch.int32)
    """
    masks = [_union(image_boxes, height, width) for image_boxes in boxes]
    return torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)


def as_masks(maps: Tensor, boxes: Boxes) -> Tensor:
    """What the caller said about the evidence, as masks (N,H,W) on the maps' device.

    Example:
        >>> as_masks(torch.zeros(1, 1, 3), [torch.tensor([[0, 0, 2, 1]])])
        tensor([[[ True,  True, False]]])
    """
    if maps.ndim != 3:
        raise ValueError(f"`maps` expected shape (N,H,W), got {tuple(maps.shape)}.")
    masks = boxes if isinstance(boxes, Tensor) and boxes.dtype == torch.bool else box_masks(boxes, *maps.shape[1:])
    if masks.shape != maps.shape:
        raise ValueError(
            f"`boxes` expected a mask, or the boxes, of each of the maps {tuple(maps.shape)}, "
            f"got masks {tuple(masks.shape)}."
        )
    return masks.to(maps.device)


def dilated(masks: Tensor, radius: int) -> Tensor:
    """Masks (N,H,W) grown by a disc: where a pixel of the mask is at most ``radius`` away.

    Example:
        >>> dilated(torch.tensor([[[True, False, False]]]), 1)
        tensor([[[ True,  True, False]]])
    """
    if radius < 0:
        raise ValueError(f"`radius` expected 0 or more pixels, got {radius}.")
    height, width = masks.shape[1:]
    # Sums along each row tell for any stretch of it whether it meets the mask: a disc is a stack of stretches.
    sums = F.pad(masks.int(), (radius + 1, radius, radius, radius)).cumsum(2)
    grown = torch.zeros_like(masks)
    for row in range(2 * radius + 1):
        half = isqrt(radius**2 - (row - radius) ** 2)
        left, right = radius - half, radius + half + 1
        rows = sums[:, row : row + height]
        grown |= rows[..., right : right + width] > rows[..., left : left + width]
    return grown


def _union(boxes: Tensor, height: int, width: int) -> Tensor:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"`boxes` expected a bool mask (N,H,W), or boxes (M,4) for each image, got {boxes.dtype} of shape "
            f"{tuple(boxes.shape)} for one image. Write `masks > 0` for masks, `boxes[:, None]` for boxes (N,4)."
        )
    left, top, right, bottom = boxes[:, None].unbind(2)
    if not bool(((left <= right) & (top <= bottom)).all()):
        raise ValueError(
            "`boxes` expected (xmin, ymin, xmax, ymax) with minima up to maxima, got "
            f"{boxes.tolist()}. Use `torchvision.ops.box_convert` for other forms."
        )
    x, y = (torch.arange(side, device=boxes.device) + 0.5 for side in (width, height))
    columns, rows = (left <= x) & (x < right), (top <= y) & (y < bottom)
    return (rows[:, :, None] & columns[:, None]).any(0)
