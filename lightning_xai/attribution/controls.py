"""Controls: maps that know nothing of the model, for methods and metrics to be compared with."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.trace import Trace
from lightning_xai.types import Attribution


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
        >>> trace = SimpleNamespace(images=torch.zeros(1, 3, 1, 2))
        >>> Random(seed=0)(trace, torch.tensor([0]))
        tensor([[[0.4098, 0.7763]]])
    """

    seed: int = 0

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W) in [0, 1)."""
        images = trace.images.detach()
        maps = [self._map(image) for image in images.float().cpu()]
        return torch.stack(maps).to(images.device, _dtype(images))

    def _map(self, image: Tensor) -> Tensor:
        # The checksum starts from the seed. The noise is drawn on the CPU, since devices draw differently.
        generator = torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes(), self.seed))
        return torch.rand(image.shape[1:], generator=generator)


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
        if not self.sigma > 0:
            raise ValueError(f"`sigma` expected a positive share of the image's side, got {self.sigma}.")

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Maps (N,H,W) in [0, 1]."""
        n, _, height, width = trace.images.shape
        rows, columns = self._profile(height, trace.images), self._profile(width, trace.images)
        return (rows[:, None] * columns).repeat(n, 1, 1)

    def _profile(self, side: int, images: Tensor) -> Tensor:
        centers = (torch.arange(side, device=images.device, dtype=_dtype(images)) + 0.5) / side
        return torch.exp(-((centers - 0.5) ** 2) / (2 * self.sigma**2))


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
        maps = trace.images.new_ones((n, height, width), dtype=_dtype(trace.images))
        maps[:, 0, 0] = 0.0
        return maps


def _dtype(images: Tensor) -> torch.dtype:
    return torch.promote_types(images.dtype, torch.float32)
