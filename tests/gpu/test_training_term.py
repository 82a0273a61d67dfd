"""The training term on a GPU is that of plain float32 on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gpu.device import CUDA, DEVICE, cuda_alone, held, there
from support import random_images, small_net
from torch import Tensor, nn

from lightning_xai import GuidedGradientLoss, regularization

pytestmark = there

TARGETS = torch.tensor([0, 1, 2, 0])
TERMS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "sigmoid": {"error": regularization.SigmoidMaskingLoss()},
    "histogram": {"error": regularization.HistogramIntersectionLoss()},
    "l1": {"error": regularization.L1DistanceLoss()},
    "l2": {"error": regularization.L2DistanceLoss()},
    "class score": {"teacher": regularization.class_score_teacher},
    "evaluation": {"batch_norm": "evaluation"},
    "fraction": {"fraction": 0.5},
    "layer": {"layer": "relu"},
}
each_term = pytest.mark.parametrize("options", TERMS.values(), ids=TERMS)


def net() -> nn.Module:
    """In training mode, without dropout, whose draws differ between devices."""
    model = small_net().train()
    model.dropout.p = 0.0
    return model


def gradients(
    device: torch.device, options: dict[str, Any], memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """What a step would go by: all gradients of the loss in one vector, on the CPU."""
    model = net().to(device).to(memory_format=memory_format)
    images = random_images(4, 16).to(device).to(memory_format=memory_format)
    term = GuidedGradientLoss(weight=0.5, **options)
    term(model, images, TARGETS.to(device), F.cross_entropy, 0).loss.backward()
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    """All gradients in one vector, on the CPU."""
    return torch.cat([one.grad.flatten().cpu().double() for one in model.parameters() if one.grad is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, of two vectors."""
    return float((found - expected).norm() / expected.norm())


@each_term
def test_gradients_are_those_of_the_cpu(options: dict[str, Any]) -> None:
    """In both memory formats."""
    expected = gradients(torch.device("cpu"), options)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        assert distance(gradients(DEVICE, options, memory_format), expected) < 1e-3


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
def test_gradients_under_autocast_point_the_same_way(dtype: torch.dtype, most: float) -> None:
    """To their precision: one minus the cosine."""
    expected = gradients(torch.device("cpu"), {})
    with torch.autocast(DEVICE.type, dtype):
        found = gradients(DEVICE, {})
    assert 1 - float(torch.cosine_similarity(found, expected, dim=0)) < most


def test_a_loss_scale_changes_nothing() -> None:
    """float16 with a GradScaler, whose scale starts at 65536."""
    model, term = net().to(DEVICE), GuidedGradientLoss(weight=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    scaler = torch.amp.GradScaler(DEVICE.type)
    images, targets = random_images(4, 16).to(DEVICE), TARGETS.to(DEVICE)
    with torch.autocast(DEVICE.type, torch.float16):
        terms = term(model, images, targets, F.cross_entropy, 0)
    scaler.scale(terms.loss).backward()
    scaler.unscale_(optimizer)
    assert terms.regularization is not None
    assert terms.regularization.isfinite()
    expected = gradients(torch.device("cpu"), {})
    assert 1 - float(torch.cosine_similarity(flat(model), expected, dim=0)) < 0.02
    assert distance(flat(model), expected) < 0.2


@pytest.mark.parametrize("benchmark", [False, True], ids=["deterministic", "benchmark"])
def test_steps_in_the_modes_of_cudnn(benchmark: bool) -> None:
    """The fastest kernels give the same gradients, deterministic ones the same bits; or torch says what cannot."""
    torch.use_deterministic_algorithms(not benchmark)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, deterministic=not benchmark):
            first, second = gradients(DEVICE, {}), gradients(DEVICE, {})
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        pytest.skip(str(error).partition(".")[0])
    assert distance(first, second) <= (1e-3 if benchmark else 0.0)


def test_memory_does_not_grow_with_steps() -> None:
    """Graphs of double backward passes hold on to a lot while they live."""
    model, term = net().to(DEVICE), GuidedGradientLoss()
    images, targets = random_images(4, 16).to(DEVICE), TARGETS.to(DEVICE)
    sizes = []
    for step in range(20):
        model.zero_grad()
        term(model, images, targets, F.cross_entropy, step).loss.backward()
        sizes.append(held())
    assert sizes[-1] == sizes[5]


@pytest.mark.filterwarnings("ignore")  # what torch says of compiling
def test_a_compiled_model_is_refused() -> None:
    """As on a CPU."""
    model = torch.compile(net().to(DEVICE), **({"mode": "reduce-overhead"} if CUDA else {"backend": "eager"}))
    with pytest.raises(RuntimeError, match=r"torch\.compile has no double backward"):
        GuidedGradientLoss()(model, random_images(4, 16).to(DEVICE), TARGETS.to(DEVICE), F.cross_entropy, 0)


@cuda_alone
def test_synchronised_batch_normalisation_of_one_process(tmp_path: Any) -> None:
    """Refused by statistics of the batch; by running ones the gradients are those of BatchNorm."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(net().to(DEVICE))
        data = random_images(4, 16).to(DEVICE), TARGETS.to(DEVICE), F.cross_entropy, 0
        with pytest.raises(RuntimeError, match="SyncBatchNorm"):
            GuidedGradientLoss()(model, *data)
        GuidedGradientLoss(weight=0.5, batch_norm="evaluation")(model, *data).loss.backward()
    finally:
        dist.destroy_process_group()
    assert distance(flat(model), gradients(DEVICE, {"batch_norm": "evaluation"})) < 1e-3
