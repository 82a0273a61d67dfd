"""Controls: maps that know nothing of the model, for methods and metrics to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.attribution.base import AroundAttribution, Attribution
from lightning_xai.noise import generators, placed_like
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace


def edge_magnitude(images: Tensor) -> Tensor:
    """Magnitude (N,H,W) of the Sobel gradient of the grey image, the mean of the channels; borders are continued.

    Sobel and Feldman, "A 3x3 Isotropic Gradient Operator for Image Processing", 1968; 4 on both sides of a step of 1.
    """
    grey = F.pad(at_least_float32(images).mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    across, down = grey[:, :, 2:] - grey[:, :, :-2], grey[:, 2:] - grey[:, :-2]
    across = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    down = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return torch.hypot(across, down)


def permuted_blocks(maps: Tensor, orders: Tensor, block: int) -> Tensor:
    """Maps (N,H,W) cut into square blocks that are put together in another order.

    ``orders`` has for each map a permutation of its ``P = (H / block) * (W / block)`` blocks, read row by row, (N,P).

    Example:
        >>> permuted_blocks(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[3, 2, 1, 0]]), block=1)
        tensor([[[4., 3.],
                 [2., 1.]]])
    """
    n, height, width = maps.shape
    if height % block or width % block:
        raise ValueError(f"`block` expected a divisor of the maps' height and width, {(height, width)}, got {block}.")
    blocks = maps.unfold(1, block, block).unfold(2, block, block)
    rows, columns = blocks.shape[1:3]
    blocks = blocks.flatten(1, 2).gather(1, orders[:, :, None, None].expand(-1, -1, block, block))
    return blocks.unflatten(1, (rows, columns)).transpose(2, 3).reshape(n, height, width)


@dataclass(frozen=True)
class Random(Attribution):
    """Uniform noise, independent for each pixel.

    The map of an image depends on the seed and on the image's content alone (the CRC-32 of its values in float32), so
    it is the same in every batch, position, epoch, process and model. The global random state is neither read nor
    changed. Equal images have equal maps.

    Args:
        seed: Any integer; another seed gives other maps.

    Example:
        >>> from types import SimpleNamespace
        >>> images = torch.zeros(1, 3, 1, 2)
        >>> trace = SimpleNamespace(images=images, noise_source=images)
        >>> Random(seed=0)(trace, torch.tensor([0]))
        tensor([[[0.4098, 0.7763]]])
    """

    seed: int = 0

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W) in [0, 1)."""
        images = trace.images.detach()
        sources = generators(trace.noise_source, self.seed)
        maps = [torch.rand(images.shape[2:], generator=source) for source in sources]
        return placed_like(torch.stack(maps), at_least_float32(images))


@dataclass(frozen=True)
class CenteredGaussian(Attribution):
    """A Gaussian bump in the middle of every image, where photographers put things.

    Args:
        sigma: Standard deviation as a share of each side.

    Raises:
        ValueError: If sigma is not positive.

    Example:
        >>> from types import SimpleNamespace
        >>> trace = SimpleNamespace(images=torch.zeros(1, 3, 1, 3))
        >>> CenteredGaussian(sigma=1 / 3)(trace, torch.tensor([0]))
        tensor([[[0.6065, 1.0000, 0.6065]]])
    """

    sigma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise ValueError(f"`sigma` expected a positive share of the image's side, got {self.sigma}.")

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W) in [0, 1]."""
        n, _, height, width = trace.images.shape
        rows, columns = self._profile(height, trace.images), self._profile(width, trace.images)
        return (rows[:, None] * columns).repeat(n, 1, 1)

    def _profile(self, side: int, images: Tensor) -> Tensor:
        centers = (torch.arange(side, device=images.device, dtype=at_least_float32(images).dtype) + 0.5) / side
        return torch.exp(-((centers - 0.5) ** 2) / (2 * float(self.sigma) ** 2))


@dataclass(frozen=True)
class FakeCAM(Attribution):
    """Ones but for the first pixel, which is zero: nearly the whole image is shown, and nothing is explained.

    From Poppi et al., "Revisiting The Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021
    (https://arxiv.org/abs/2104.10252). A metric that it wins, as it does Average Drop, does not measure explanations.

    Example:
        >>> from types import SimpleNamespace
        >>> trace = SimpleNamespace(images=torch.zeros(1, 3, 1, 3))
        >>> FakeCAM()(trace, torch.tensor([0]))
        tensor([[[0., 1., 1.]]])
    """

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W), zero or one."""
        n, _, height, width = trace.images.shape
        maps = trace.images.new_ones((n, height, width), dtype=at_least_float32(trace.images).dtype)
        maps[:, 0, 0] = 0.0
        return maps


@dataclass(frozen=True)
class Edges(Attribution):
    """An edge detector: the Sobel magnitude of the grey image, `edge_magnitude`.

    It knows neither the model nor the class, and looks like guided backpropagation (Adebayo et al., "Sanity Checks for
    Saliency Maps", NeurIPS 2018, https://arxiv.org/abs/1810.03292): a metric that it wins rewards looking at edges.

    Example:
        >>> from types import SimpleNamespace
        >>> trace = SimpleNamespace(images=torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]))
        >>> Edges()(trace, torch.tensor([0]))
        tensor([[[0., 4., 4., 0.]]])
    """

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W), non-negative."""
        return edge_magnitude(trace.images.detach())


@dataclass(frozen=True)
class Shuffled(AroundAttribution):
    """The map of another method with its pixels in random order: the same values, and nowhere in particular.

    What a metric gives it beyond a constant is due to how much the map shows, not to where. Blocks keep what the map
    has of smoothness. The order depends on the seed and on the image's content alone, as the noise of `Random`.

    Attributes:
        attribution: The method; its cost is the cost.
        block: Side in pixels of the blocks that stay together, a divisor of the image's height and width.
        seed: Any integer; another seed gives other orders.

    Raises:
        TypeError: If the method is none.
        ValueError: If the block is smaller than a pixel or, once images are seen, no divisor.

    Example:
        >>> from lightning_xai import explain
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> explain(model, torch.ones(1, 1, 2, 2), attributions=Shuffled(FakeCAM(), seed=2))
        tensor([[[1., 0.],
                 [1., 1.]]])
    """

    block: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"`block` expected a side of 1 pixel or more, got {self.block}.")

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W) with the values of the method's."""
        maps = self.attribution(trace, targets)
        n_blocks = maps[0].numel() // self.block**2
        orders = [torch.randperm(n_blocks, generator=source) for source in generators(trace.noise_source, self.seed)]
        return permuted_blocks(maps, torch.stack(orders).to(maps.device, non_blocking=True), self.block)
