"""Passes that one process makes and others do not, where parameters are spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from torch import nn

from lightning_xai.trace import has_tensor_parallelism, is_sharded, unsharded


def require_whole_parameters(trainer: pl.Trainer) -> None:
    """Refuse strategies under which a rank never sees a whole layer.

    Raises:
        RuntimeError: For FSDP's first version and DeepSpeed's third stage.
    """
    kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    if "FSDPStrategy" in kinds or getattr(trainer.strategy, "zero_stage_3", False):
        raise RuntimeError(
            f"The callbacks expected a strategy under which parameters can be gathered for passes of their own, got "
            f"{type(trainer.strategy).__name__}. Use ModelParallelStrategy, and `fully_shard` in `configure_model`."
        )


def require_no_tensor_parallelism(pl_module: nn.Module) -> None:
    """Refuse modules of which every pass is one of all ranks.

    Raises:
        RuntimeError: If it has parameters that are spread by other means than ``fully_shard``.
    """
    if has_tensor_parallelism(pl_module):
        raise RuntimeError(
            "The callbacks expected parameters that are whole on each rank, or sharded by `fully_shard`, got tensor "
            "parallelism, under which the passes of one rank would wait for the others for ever."
        )


@contextmanager
def own_passes(trainer: pl.Trainer, wanted: bool) -> Iterator[None]:
    """Inside, a rank may make passes that others do not make; to be entered on all ranks.

    Where parameters are sharded they are gathered on every rank, if any of them wants that.
    """
    module = trainer.lightning_module
    sharded = trainer.world_size > 1 and is_sharded(module)
    if sharded and trainer.strategy.reduce_boolean_decision(wanted, all=False):
        with unsharded(module):
            yield
    else:
        yield
