"""What the term refuses, each with its remedy: models and strategies without double backward, images that are NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError


def require_double_backward(model: nn.Module, batch_norm: Literal["training", "evaluation"] = "training") -> None:
    """Refuse models of which exact double backpropagation is impossible or silently wrong.

    By running statistics (``batch_norm``) SyncBatchNorm is an affine map like any other.

    Raises:
        RuntimeError: For compiled modules, FSDP, and SyncBatchNorm by statistics of the batch, with what to do instead.

    Example:
        >>> require_double_backward(nn.ReLU())
    """
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        compiled = module._compiled_call_impl is not None or getattr(module, "_compiler_ctx", None) is not None
        for found, remedy in (
            (
                compiled or "OptimizedModule" in kinds,
                "torch.compile has no double backward: train the model that it was given, without it",
            ),
            (
                "SyncBatchNorm" in kinds and batch_norm == "training",
                "the double backward of its joint statistics is missing: use "
                "GuidedGradientLoss(batch_norm='evaluation'), or BatchNorm with Trainer(sync_batchnorm=False)",
            ),
            (kinds & {"FullyShardedDataParallel", "FSDPModule"}, "FSDP has no double backward: use DDP"),
        ):
            if found:
                raise RuntimeError(
                    f"The guided-gradient term cannot be trained with {type(module).__name__} {name!r}: {remedy}."
                )


def require_strategy(trainer: pl.Trainer | None) -> None:
    """Refuse strategies that split parameters: their hooks run one plain backward pass, and no other.

    Raises:
        RuntimeError: For FSDP, DeepSpeed and tensor parallelism, with what to do instead.

    Example:
        >>> require_strategy(None)
    """
    strategy = type(getattr(trainer, "strategy", None))
    # by name: both packages that ship Lightning have classes of their own
    if {kind.__name__ for kind in strategy.__mro__} & {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}:
        raise RuntimeError(
            f"The guided-gradient term cannot be trained with {strategy.__name__}: it has no double backward. "
            'Use Trainer(strategy="ddp").'
        )


@contextmanager
def checkpointing_named() -> Iterator[None]:
    """A checkpointed part that is not recomputed as it ran ends with what to do instead.

    Recomputation happens in backward passes, after the modes under which the term's own forward pass ran.

    Example:
        >>> with checkpointing_named():
        ...     pass
    """
    try:
        yield
    except CheckpointError as error:
        raise RuntimeError(
            "The guided-gradient term expected activation checkpointing to recompute what the forward pass ran. It "
            "does not under `batch_norm='evaluation'`, nor with attention, which the term takes by plain operations. "
            "Train without checkpointing, and with smaller batches or `fraction` where memory is short."
        ) from error


def require_recomputed_once(recomputed: bool) -> None:
    """Refuse a pass of the term's own that is recomputed: the last backward pass would move statistics by it.

    Raises:
        RuntimeError: If so, with what to do instead.

    Example:
        >>> require_recomputed_once(False)
    """
    if recomputed:
        raise RuntimeError(
            "The guided-gradient term with `fraction` expected batch normalisation outside of activation checkpoints, "
            "which moves running statistics once more by the share of the batch. Use fraction=1, or train without "
            "checkpointing."
        )


def require_finite(images: Tensor) -> None:
    """Refuse images with values that are NaN or infinite: the classification loss cannot be trained on them either.

    Raises:
        ValueError: If there are any.

    Example:
        >>> import torch
        >>> require_finite(torch.zeros(1, 3, 2, 2))
    """
    bad = int((~images.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise ValueError(
            f"`images` expected finite values, got NaN or infinity in {bad} of {len(images)} images. Look for them in "
            "the dataset and its transforms."
        )
