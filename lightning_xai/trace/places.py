"""Where on the image the tokens of a layer lie, shown by changing parts of an image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_xai.scores import plain
from lightning_xai.trace.calling import Calling
from lightning_xai.trace.hooks import forward_hooks, hookable, hooks_apart
from lightning_xai.trace.layers import name_of
from lightning_xai.trace.modes import GraphKept, borrowed, eager, plain_tensors
from lightning_xai.trace.tokens import Layouts, as_tokens, positions
from lightning_xai.types import Tokens

Axes = Literal["NTD", "TND", "NDT"]
Grid = tuple[int, int]

_AXES: dict[Axes, int] = {"NTD": 0, "TND": -2, "NDT": 0}  # with the axis of the images
_AT_ONCE = 16  # images of a pass
_GAP = 0.25  # between the centres of two rows or columns, so that every token is clearly in one of them
_LEAD = 1.5  # how many times as clear as of tokens that are no patches
_CLEAR = 1.2  # how much more a few tokens move with their row and column, if they are in no reading order
_FOLLOWS = 0.9  # correlation between where tokens in reading order lie and from where they are moved
_OTHERS = 16  # most tokens that are no patches, where no feature map has the grid

_SHOWN: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], list[Tokens]]] = WeakKeyDictionary()


def same_places(model: nn.Module, copied: nn.Module) -> None:
    """What was shown of a model holds for its copy, whatever the weights of that are."""
    _SHOWN[copied] = dict(_SHOWN.get(model, {}))


class Watched:
    """What the modules of a model give in a pass of its own, of the first of some images.

    Args:
        model: The classifier.
        images: Images (N,C,H,W).
        calling: How it is called with them.
        graph: Whether the outputs have a graph.

    Attributes:
        outputs: The tensors of the modules that were called once, in the order in which they finished.
        calls: How often each module was called.
        layouts: What the outputs tell of their axes.
        image: What it was given, (1,C,H,W), where the graph starts.
        logits: What the model gave, (1,K).
    """

    def __init__(self, model: nn.Module, images: Tensor, calling: Calling, graph: bool = False) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.layouts = Layouts(1)
        calling = calling.of(torch.tensor([0]), len(images))
        modules = [module for module in hookable(model) if module is not model]
        kept = GraphKept(begun=True) if graph else nullcontext()
        with borrowed(model), eager(), torch.inference_mode(False), torch.set_grad_enabled(graph), kept:
            self.image = plain(images)[:1].detach().clone().requires_grad_(graph)
            with forward_hooks(modules, self._note), hooks_apart(model), calling.context():
                self.logits = calling.logits(model, self.image.clone())  # which it may overwrite

    def _note(self, module: nn.Module, args: object, kwargs: object, output: object) -> Tensor | None:
        self.calls[module] += 1
        self.outputs.pop(module, None)
        if not isinstance(output, Tensor):
            return None
        self.layouts.note(module, output.shape)
        if self.calls[module] > 1:
            return None
        self.outputs[module] = output
        return output.clone()  # what follows may work on this one in place


class Places:
    """Where the outputs of layers lie on the image: which of their tokens move with which part of it.

    Each row and each column of patches is replaced by noise, one at a time. Attention moves all tokens, but most those
    of the patch itself. What was shown is kept as long as the model.

    Args:
        model: The classifier.
        images: Images (N,C,H,W), of which the first is changed.
        calling: How the model is called with them.
        modules: The layers.
        watched: What they give for that image; None to look where it is needed.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        calling: Calling,
        modules: Iterable[nn.Module],
        watched: Watched | None = None,
    ) -> None:
        self._model = model
        self._images = plain(images.detach())
        self._calling = calling
        self._modules = set(modules)
        self._watched = watched
        self._moved: dict[Grid, dict[tuple[nn.Module, Axes], Tensor]] = {}

    def of(self, module: nn.Module, output: Tensor) -> Tokens:
        """Where the output of a layer lies.

        Raises:
            ValueError: If they were not shown, or in two ways.
        """
        name, known = name_of(self._model, module), _SHOWN.setdefault(self._model, {})
        key = name, self._images.shape[1:]
        tried = (*key, sum(one._version for one in self._model.parameters()))  # other weights may show more
        found = known.get(key, known.get(tried))
        if found is None:
            found = self._readings(module, name)
            known[key if len(found) == 1 else tried] = found
        if len(found) != 1:
            fits = " and ".join(map(str, found)) or "nothing"
            raise ValueError(
                f"`layer` {name!r} expected an output (N, D, h, w), or tokens that each move with a patch of the "
                f"image, got {tuple(output.shape)}, and {fits} fits. Give them, `Tokens({name!r}, (h, w))` say, or "
                "take another layer."
            )
        return found[0]

    def are_likely(self, module: nn.Module) -> bool:
        """Whether an output looks like tokens, or rows and columns of them: neither a vector nor something of heads."""
        shape, grids = self._seen.outputs[module].shape, self._grids(module)
        return sum(size > 1 for size in shape) > 1 and (len(grids) > 0 if len(shape) == 3 else shape[1:3] in grids)

    @property
    def _seen(self) -> Watched:
        if self._watched is None:
            self._watched = Watched(self._model, self._images, self._calling)
        return self._watched

    def _readings(self, module: nn.Module, name: str) -> list[Tokens]:
        """What the output can be, on the finest grid on which it is anything."""
        for grid in self._grids(module):
            moved = {axes: one for (layer, axes), one in self._moved_with(grid).items() if layer is module}
            found = [reading for axes, one in moved.items() if (reading := _reading(name, axes, grid, one))]
            if found:
                return found
        return []

    def _grids(self, module: nn.Module) -> list[Grid]:
        if module not in self._seen.outputs:
            return []
        shape, seen = self._seen.outputs[module].shape, self._seen.layouts.grids
        found: list[Grid] = []
        for axes in (axes for axes, images in _AXES.items() if shape[images] == 1):
            size = positions(shape, axes)
            # Channels are as many as they like: of what grid they could be says nothing.
            image = torch.Size() if axes == "NDT" and len(size) == 1 else self._images.shape[2:]
            found += [
                one for one in possible_grids(size, seen, image) if axes != "NDT" or len(size) == 1 or one == size
            ]
        return list(dict.fromkeys(found))

    def _moved_with(self, grid: Grid) -> dict[tuple[nn.Module, Axes], Tensor]:
        """How far each token of the layers moves with each row of a grid, then with each column, (h+w,T)."""
        if grid not in self._moved:
            before = self._seen.outputs
            wanted = [module for module in self._modules if grid in self._grids(module)]
            parts: dict[tuple[nn.Module, Axes], list[Tensor]] = defaultdict(list)

            def note(module: nn.Module, args: object, kwargs: object, output: Tensor) -> None:
                for axes in _axes(before[module].shape, output.shape):
                    parts[module, axes].append(as_tokens(output.float() - before[module].float(), axes).norm(dim=2))

            with borrowed(self._model), eager(), plain_tensors(), forward_hooks(wanted, note):
                for images in changed(self._images[:1], grid):
                    calling = self._calling.of(torch.zeros(len(images), dtype=torch.long), len(self._images))
                    with calling.context():
                        calling.logits(self._model, images)
                self._moved[grid] = {key: torch.cat(rows) for key, rows in parts.items()}
        return self._moved[grid]


def _axes(one: torch.Size, several: torch.Size) -> list[Axes]:
    """Which axes an output may have, by its shapes for one image and for several."""
    grown = [axis - len(one) for axis, (a, b) in enumerate(zip(one, several, strict=True)) if a != b]
    if len(grown) != 1 or one[grown[0]] != 1:  # such as windows, of which every image has many
        return []
    return [axes for axes, images in _AXES.items() if grown == [images % len(one) - len(one)]]


def _reading(name: str, axes: Axes, grid: Grid, moved: Tensor) -> Tokens | None:
    """The places of tokens that moved so."""
    order = order_of(moved, grid)
    if order is None:
        return None
    first = moved.shape[1] - len(order)
    usual = order == list(range(first, moved.shape[1]))
    return Tokens(name, grid, first, axes) if usual else Tokens(name, grid, 0, axes, tuple(order))


def possible_grids(size: torch.Size, seen: set[Grid], image: torch.Size) -> list[Grid]:
    """Grids that tokens may lie on, the finest first.

    Args:
        size: How many tokens there are, or how many rows and columns of them.
        seen: Grids of feature maps in the same pass.
        image: Height and width of the image, for grids in proportion to it; empty where only seen ones count.

    Example:
        >>> possible_grids(torch.Size([12]), {(5, 5), (2, 6)}, torch.Size([64, 64]))
        [(2, 6)]
    """
    count = size.numel()
    # Where so many are left over, the tokens are others, such as queries.
    found = {(h, w) for h, w in seen if h * w <= count <= 1.5 * h * w}
    if len(size) == 2 and image and count <= max((h * w for h, w in seen), default=count):
        found |= _in_proportion({(size[0], size[1])}, image)
    if len(size) == 1 and image and not found:
        sums = range(max(count - _OTHERS, -(-2 * count // 3)), count + 1)
        found = _in_proportion({(h, one // h) for one in sums for h in range(1, one + 1) if one % h == 0}, image)
    return sorted((one for one in found if max(one) > 1), key=lambda grid: -grid[0] * grid[1])


def _in_proportion(grids: set[Grid], image: torch.Size) -> set[Grid]:
    """Those with the proportions of the image, up to one row or column."""
    return {(h, w) for h, w in grids if abs(h * image[1] - w * image[0]) <= max(image)}


def changed(image: Tensor, grid: Grid) -> Iterator[Tensor]:
    """An image (1,C,H,W) with noise in the place of each row of a grid, then of each column, some at a time."""
    parts = []
    for count, size in zip(grid, image.shape[2:], strict=True):
        parts.append(torch.arange(size) * count // size == torch.arange(count)[:, None])
    rows, columns = parts[0][:, None, :, None], parts[1][:, None, None, :]
    masks = torch.cat([rows.expand(-1, -1, -1, image.shape[3]), columns.expand(-1, -1, image.shape[2], -1)])
    deviation = image.std().item() or 1.0
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image) * deviation
    for some in masks.tensor_split(-(-len(masks) // _AT_ONCE)):
        yield torch.where(some.to(image.device), image.mean((2, 3), keepdim=True) + noise, image)


def order_of(moved: Tensor, grid: Grid) -> list[int] | None:
    """Which token is that of each patch.

    A token is where the rows and columns are that move it more than others. Either these places are those of a grid,
    one token in each, in whatever order; or tokens in reading order, before or after all others, follow the rows and
    columns on the whole.

    Args:
        moved: How far each of T tokens moves with each row, then with each column, (h+w,T).
        grid: Rows and columns.

    Returns:
        A token for each patch in reading order; None where this is not clear.

    Example:
        Two tokens in one row, exchanged:

        >>> order_of(torch.tensor([[5.0, 5.0], [1.0, 4.0], [3.0, 1.0]]), grid=(1, 2))
        [1, 0]
    """
    height, width = grid
    count, n = height * width, moved.shape[1]
    if not count <= n <= 1.5 * count:
        return None
    usual = moved / _positive(moved.mean(1, keepdim=True))
    lead = torch.minimum(_lead(usual[:height]), _lead(usual[height:]))
    centres = _centres(usual[:height]), _centres(usual[height:])
    tokens = lead.argsort(descending=True)
    if n == count or lead[tokens[count - 1]] >= _LEAD * lead[tokens[count]]:
        tokens = tokens[:count]
        row, column = _groups(centres[0][tokens], height), _groups(centres[1][tokens], width)
        if row is not None and column is not None and len((row * width + column).unique()) == count:
            order = tokens[(row * width + column).argsort()]
            # By chance, one token in each place: of four tokens once in ten times, of nine once in a thousand.
            if count > 8 or lead[order].median() >= _CLEAR or bool((order.diff() == 1).all()):
                return order.tolist()
    follow = [first for first in {n - count, 0} if _follow(lead, centres, first, grid)]
    return list(range(follow[0], follow[0] + count)) if len(follow) == 1 else None


def _positive(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(values.dtype).tiny)


def _lead(bands: Tensor) -> Tensor:
    """How much more each token moves with one band than with any other, (T,)."""
    if len(bands) == 1:
        return torch.full_like(bands[0], torch.inf)
    first, second = bands.topk(2, dim=0).values
    return first / _positive(second)


def _centres(bands: Tensor) -> Tensor:
    """Where the bands are that move each token more than the mean of them does, (T,)."""
    excess = (bands / _positive(bands.mean(0)) - 1).clamp(min=1e-6).square()
    return (torch.arange(len(bands)).to(bands)[:, None] * excess).sum(0) / excess.sum(0)


def _groups(centres: Tensor, n: int) -> Tensor | None:
    """To which of n bands, each with as many tokens, a token belongs; None where there is no gap between them."""
    values, order = centres.sort()
    values = values.view(n, -1)
    if n > 1 and (values[1:, 0] - values[:-1, -1]).min() < _GAP:
        return None
    return order.argsort() // values.shape[1]


def _follow(lead: Tensor, centres: tuple[Tensor, Tensor], first: int, grid: Grid) -> bool:
    """Whether tokens in reading order lie where they are moved from, up to a shift of all, as strides make it."""
    last = first + grid[0] * grid[1]
    others = torch.cat([lead[:first], lead[last:]])
    if (others > (1 + lead[first:last].median()) / 2).sum() >= grid[1]:
        return False  # a row was left out
    places = torch.arange(last - first, device=lead.device)
    pairs = zip(centres, (places // grid[1], places % grid[1]), grid, strict=True)
    return all(
        size == 1 or torch.corrcoef(torch.stack([moved[first:last], place.to(moved)]))[0, 1] >= _FOLLOWS
        for moved, place, size in pairs
    )
