"""The clock tells the term's part of a step from the rest; time stands still here unless something takes it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support import needs_cuda
from torch import Tensor

from lightning_xai.trace import clock as module
from lightning_xai.trace.clock import TermClock

CPU = torch.device("cpu")


class Time:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0


class Takes(torch.autograd.Function):
    """Nothing to the values; its backward pass takes some seconds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, time: Time, seconds: float) -> Tensor:
        ctx.time, ctx.seconds = time, seconds
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.time.now += ctx.seconds
        return gradient, None, None


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """What the clock reads."""
    time = Time()
    monkeypatch.setattr(module, "perf_counter", lambda: time.now)
    return time


@pytest.mark.parametrize("shared", [True, False])
def test_the_share_is_that_of_what_was_recorded_after_the_logits(time: Time, shared: bool) -> None:
    """Forward 1 and the term 2 seconds, backward 3 of the term and 4 of the rest: 5 of 10."""
    clock, x = TermClock(CPU), torch.ones(2, requires_grad=True)
    clock.mark("begin")
    logits = Takes.apply(x, time, 4.0)
    time.now += 1
    clock.mark("term")
    term = Takes.apply(logits if shared else x, time, 3.0)
    time.now += 2
    loss = logits.sum() + term.sum()
    clock.follow(loss, logits, shared=shared)
    assert clock.share is None
    loss.backward()
    assert clock.share == 50


def test_a_step_that_is_not_differentiated_has_no_share() -> None:
    """As in validation."""
    clock = TermClock(CPU)
    clock.mark("begin")
    clock.mark("term")
    clock.follow(torch.zeros(()), torch.zeros(1, 2))
    assert clock.share is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clock: pickle.loads(pickle.dumps(clock))])
def test_copies_begin_anew(time: Time, copied: Any) -> None:
    """Losses are copied with their modules, by averages of weights say."""
    clock = TermClock(CPU)
    clock.mark("begin")
    assert copied(clock)._times == {}
    assert copied(clock).device == CPU


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_is_timed_by_events() -> None:
    """Nobody waits: the share is there when the backward pass is over."""
    device = torch.device("cuda")
    clock, x = TermClock(device), torch.randn(512, 512, device=device, requires_grad=True)
    clock.mark("begin")
    logits = x @ x
    clock.mark("term")
    (gradient,) = torch.autograd.grad(logits.square().sum(), x, create_graph=True)
    loss = logits.sum() + gradient.square().sum()
    clock.follow(loss, logits)
    loss.backward()
    torch.cuda.synchronize()
    assert clock.share is not None
    assert 0 < clock.share < 100
