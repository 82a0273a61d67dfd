"""The table of what training steps cost: the network, the rows, and whether all rows lower the same loss."""

import copy
import re

import pytest
import torch
from benchmark import main
from torch import nn

from benchmarks.training import Result, Row, Setting, Training, by_pytorch, measure, plain, rows_of
from common.data.cifar import CifarResNet
from common.measured import quartiles

SMALL = Setting(
    "small",
    lambda: nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    4,
    8,
    "0",
    2.0,
)


def test_a_run_prints_a_table_for_each_network(capsys):
    """One round on few images."""
    assert main(["--training", "--fast-dev-run", "--threads", "1"]) == []
    printed = capsys.readouterr().out
    assert "ResNet-18, batch 8, 32 px, 1 rounds" in printed
    assert "ResNet-20, batch 8, 32 px, 1 rounds" in printed
    assert printed.count("every_n_steps=8") == 2


def test_a_profile_shows_where_the_time_goes(capsys):
    """Of a plain step and of the exact term, which costs more."""
    assert main(["--training", "--profile", "--fast-dev-run", "--threads", "1"]) == []
    printed = capsys.readouterr().out
    assert "aten::convolution_backward" in printed
    wholes = re.findall(r"all +1\.000 +(\d\.\d+)", printed)
    assert len(wholes) == 2
    assert min(map(float, wholes)) > 1.2


def test_resnet20_is_that_of_the_paper():
    """0.27 million parameters, three stages with 16, 32 and 64 channels."""
    model = CifarResNet(3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    assert model.layer3(model.layer2(model.layer1(torch.zeros(1, 16, 32, 32)))).shape == (1, 64, 8, 8)


def test_the_exact_term_lowers_what_pytorch_differentiates():
    """Both rows are one loss with one gradient."""
    torch.manual_seed(0)
    images, targets = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    exact = next(row for row in rows_of(SMALL) if row.name == "exact")
    models = [CifarResNet(3), None]
    models[1] = copy.deepcopy(models[0])
    for model, loss in zip(models, (exact.loss, by_pytorch), strict=True):
        loss(model, images, targets, 0).backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_rows_take_turns_each_after_plain_steps():
    """Of several steps the mean counts; the first round warms up."""
    log = []

    def noted(name):
        def loss(model, images, targets, step):
            log.append(f"{name}{step}")
            return plain(model, images, targets, step)

        return loss

    results = measure(SMALL, [Row("a", noted("a")), Row("b", noted("b"), 2)], 2, torch.device("cpu"))
    assert log == ["a0", "b0", "b1"] * 3
    assert [len(result.ratios) for result in results] == [2, 2]


def test_a_step_is_that_of_the_optimizer():
    """On the gradient of this batch alone."""
    model = SMALL.make()
    training = Training(model, torch.optim.SGD(model.parameters(), 0.0))
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    gradients = []
    for _ in range(2):
        training.step(plain, images, targets)
        gradients.append(model[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_quartiles_of_one_value_are_that_value():
    """Of several, as usual."""
    assert quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert quartiles([1.0, 5.0, 2.0, 3.0, 4.0]) == pytest.approx((2.0, 3.0, 4.0))
    assert Result(Row("a", plain)).ratios == []
