"""Where on the image the outputs of transformers lie: tokens and channels-last outputs as (N,D,h,w)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_xai.types import Tokens


def as_feature_maps(output: Tensor, grid: tuple[int, int], prefix: int = 0) -> Tensor:
    """Tokens (N,T,D) or a channels-last output (N,h,w,D) as (N,D,h,w).

    Args:
        output: Tokens or channels-last features, or gradients with respect to them; patches in reading order.
        grid: Rows and columns of patches, (h, w).
        prefix: Number of tokens before the first patch: class, distillation and register tokens.

    Returns:
        A view (N,D,h,w) of the patches.

    Example:
        >>> as_feature_maps(torch.arange(5.0).view(1, 5, 1), grid=(2, 2), prefix=1)
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """
    return output.flatten(1, -2)[:, prefix:].unflatten(1, grid).movedim(3, 1)


def arranged_as_given(output: Tensor, tokens: Tokens) -> Tensor:
    """An output of a layer whose places are given, or the gradient with respect to it, as (N,D,h,w).

    Raises:
        ValueError: If the output has other positions.
    """
    height, width = tokens.grid
    count = output.shape[1:-1].numel()
    if count != tokens.prefix + height * width or (output.ndim == 4 and output.shape[1:3] != tokens.grid):
        raise ValueError(
            f"`{tokens}` expected an output (N, {tokens.prefix} + {height} * {width}, D) or (N, {height}, {width}, D), "
            f"got {tuple(output.shape)}."
        )
    return as_feature_maps(output, tokens.grid, tokens.prefix)


class Shapes:
    """The shapes of a forward pass, which tell where on the image the positions of each output lie.

    There is no list of architectures. What a layer normalises over its last dimension has its channels there. Tokens
    (N,T,D) lie on the finest grid of the pass, as the patch embedding's convolution gave it, that has no more than T
    positions and the proportions of the image; the tokens left over come first, as they do in timm and torchvision.

    Args:
        images: What the model is given, (N,C,H,W).
    """

    def __init__(self, images: Tensor) -> None:
        self._n, _, self._height, self._width = images.shape
        self._four: set[torch.Size] = set()
        self._channels_last: set[torch.Size] = set()
        self._three: set[torch.Size] = set()
        self._normalised: set[torch.Size] = set()

    def note(self, module: nn.Module, shape: torch.Size) -> None:
        """Take note of what a module gave."""
        if len(shape) not in (3, 4) or shape[0] != self._n:
            return
        every, normalised = (self._three, self._normalised) if len(shape) == 3 else (self._four, self._channels_last)
        every.add(shape)
        if _normalises_last(module, shape):
            normalised.add(shape)

    @property
    def has_tokens(self) -> bool:
        """Whether any output was several tokens."""
        return any(shape[1] > 1 for shape in self._normalised)

    def is_spatial(self, shape: torch.Size) -> bool:
        """Whether an output has several positions on the image, in known places or as tokens.

        Args:
            shape: Shape of an output.

        Returns:
            True if so; not for what attention makes of T tokens, such as (N, heads, T, T).
        """
        if len(shape) != 4 or shape[0] != self._n:
            return self._are_tokens(shape)
        height, width = self._grid(shape)
        counts = {one[1] for one in self._three} if self.has_tokens else set()
        return height * width > 1 and not counts & {height, width}

    def arranged(self, output: Tensor, name: str) -> Tensor:
        """The output of a layer, or the gradient with respect to it, as (N,D,h,w).

        Raises:
            ValueError: If the places on the image cannot be found.
        """
        shape = output.shape
        if len(shape) == 4 and shape not in self._channels_last:
            return output
        grid = self._grid_of_tokens(shape) if len(shape) == 3 else self._grid(shape)
        if grid is None or (len(shape) == 4 and shape[1] == shape[3]):
            raise ValueError(
                f"`layer` {name!r} expected an output (N, D, h, w), or one whose places on the image follow from the "
                f"patch embedding, got {tuple(shape)}. Give them, `Tokens({name!r}, grid=(h, w), prefix=1)` say, or "
                "choose another layer."
            )
        return as_feature_maps(output, grid, shape[1:-1].numel() - grid[0] * grid[1])

    def _are_tokens(self, shape: torch.Size) -> bool:
        """Whether an output (N,T,D) is several tokens: as many or as wide as some that were normalised."""
        if len(shape) != 3 or shape[0] != self._n or shape[1] == 1:
            return False
        return any(shape[1] == one[1] or shape[2] == one[2] for one in self._normalised)

    def _grid(self, shape: torch.Size) -> tuple[int, int]:
        return (shape[1], shape[2]) if shape in self._channels_last else (shape[2], shape[3])

    def _grid_of_tokens(self, shape: torch.Size) -> tuple[int, int] | None:
        if not self._are_tokens(shape):
            return None
        grids = [(h, w) for h, w in map(self._grid, self._four) if h * w <= shape[1] and self._in_proportion(h, w)]
        height, width = max(grids, key=lambda grid: grid[0] * grid[1], default=(0, 0))
        # Where so many are left over, the tokens are others, such as queries.
        return (height, width) if 2 * shape[1] <= 3 * height * width else None

    def _in_proportion(self, height: int, width: int) -> bool:
        """Whether a grid has the proportions of the image, up to one row or column."""
        return abs(height * self._width - width * self._height) <= max(self._height, self._width)


def _normalises_last(module: nn.Module, shape: torch.Size) -> bool:
    """Whether a module is a layer or RMS normalisation over the last dimension of its output.

    Those of ConvNeXt that normalise the second dimension are of the same classes.
    """
    normalised = getattr(module, "normalized_shape", ())
    return tuple(normalised) == (shape[-1],) if isinstance(normalised, (tuple, list)) else normalised == shape[-1]
