"""What several test modules share: small networks, and the check that a model is as it was before."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Two convolutions with batch normalisation, in-place and functional ReLU, dropout, pooling and a linear head."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.last = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(self.relu(self.bn1(self.conv1(images))), 2)
        hidden = self.last(self.bn2(self.conv2(hidden)))
        return self.head(self.dropout(hidden.mean((2, 3))))


def activation(model: SmallNet, image: Tensor) -> Tensor:
    """What ``bn1`` gives for one image, (D,h,w): signed."""
    return model.bn1(model.conv1(image[None]))[0].detach()


def tail(model: SmallNet, hidden: Tensor) -> Tensor:
    """The logits (K,) that the rest of the network makes of it, in evaluation mode."""
    hidden = F.max_pool2d(hidden[None].relu(), 2)
    return model.head(model.bn2(model.conv2(hidden)).relu().mean((2, 3)))[0]


class OneConv(nn.Module):
    """The network of captum's BasicModel_ConvNet_One_Conv (captum/testing/helpers/basic_models.py)."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3, 1)
        self.relu1 = nn.ReLU(inplace=inplace)
        self.fc1 = nn.Linear(8, 4)
        self.conv1.weight.data = torch.ones(2, 1, 3, 3)
        self.conv1.bias.data = torch.tensor([-50.0, -75.0])
        self.fc1.weight.data = torch.cat([torch.ones(4, 5), -torch.ones(4, 3)], dim=1)
        self.fc1.bias.data = torch.zeros(4)
        self.relu2 = nn.ReLU(inplace=inplace)

    def forward(self, images):
        return self.relu2(self.fc1(self.relu1(self.conv1(images)).view(-1, 8)))


def small_net(classes: int = 3, channels: int = 3) -> SmallNet:
    """A seeded SmallNet in evaluation mode whose batch normalisation has seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallNet(classes, channels)
        model(torch.randn(32, channels, 8, 8))
        return model.eval()


def random_images(n: int = 4, size: int = 8, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded images, whatever the global random state."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that an explanation must leave alone."""
    return {
        "modes": [module.training for module in model.modules()],
        "parameters": [id(parameter) for parameter in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "grad values": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": copy.deepcopy({name: value.clone() for name, value in model.state_dict().items()}),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "own attributes": [sorted(module.__dict__) for module in model.modules()],
        "random state": torch.get_rng_state(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Fail where the two states differ, naming what does."""
    for name in before:
        if name == "grads":
            assert [id(grad) for grad in before[name]] == [id(grad) for grad in after[name]], name
        elif name in ("values", "grad values", "random state"):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, msg=name)
        else:
            assert after[name] == before[name], name


class Marked(Tensor):
    """As MONAI's MetaTensor: what torch functions make of it is of its class, and knows what it knew."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(found, cls):
            found.meta = next((one.meta for one in args if isinstance(one, cls) and hasattr(one, "meta")), None)
        return found

    @staticmethod
    def __new__(cls: Any, values: Any, meta: Any = None) -> Any:
        return torch.as_tensor(values).as_subclass(cls)

    def __init__(self, values: Any, meta: Any = None) -> None:
        self.meta = meta

    def new_empty(self, size: Any, **options: Any) -> Tensor:
        if not isinstance(size, (tuple, list)):
            raise TypeError("`size` expected a tuple, as MetaTensor does.")
        return super().new_empty(size, **options)


class Unhappy(nn.Module):
    """Raises in its forward when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.happy = True

    def forward(self, values: Tensor) -> Tensor:
        if not self.happy:
            raise ArithmeticError("unhappy")
        return values


def environment() -> dict[str, str]:
    """For programs of the tests: they import what tests import, and leave the other cores alone."""
    tests = Path(__file__).parent
    paths = [str(tests), str(tests.parent), str(tests.parent / "recipes"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def in_two_processes(program: ModuleType, folder: Path, limit: float = 300) -> list[Any]:
    """Run a program that Lightning starts a second time; what each process left in ``rank_<i>.json``."""
    command = [sys.executable, str(program.__file__), str(folder)]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # both of them
    assert code == 0, f"{code}: {(folder / 'output.txt').read_text()[-3000:]}"
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


def killed_once_there_is(path: Path, program: ModuleType, *arguments: Any) -> None:
    """Start a program and kill it, without a chance to clean up, when it has written a file."""
    command = [sys.executable, str(program.__file__), *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 600
        while not path.exists():
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline, f"{path} was not written"
            time.sleep(0.01)
    finally:
        process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def process_of(settings: Any, i: int) -> tuple[int, int]:
    """A number, and who was asked for it; here, where a process that was just started finds it."""
    return i, os.getpid()
