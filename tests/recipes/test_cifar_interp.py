"""The training term from scratch, at a scale of seconds; and CIFAR-10."""

import io
import json

import cifar_interp
import numpy as np
import pytest
import torch
from cifar_interp import ARMS, augmented, main
from PIL import Image

from common.data.cifar import CifarResNet, cifar10
from papers.interpretable_gradients.effect_report import finished
from papers.interpretable_gradients.term import squared_norm


def test_every_arm_has_a_file_for_each_seed_and_is_trained_once(tmp_path, monkeypatch, capsys):
    """Stopped, the run goes on; tables are differences to plain training."""
    options = ["--fast-dev-run", "--device", "cpu", "--results", str(tmp_path), "--seeds", "2"]
    options += ["--numbers", str(tmp_path / "numbers" / "tables.json")]
    with torch.random.fork_rng():
        found = main(options)
    lost = sorted(tmp_path.glob("generated_mirrored_*_seed1.json"))
    assert len(lost) == 1
    lost[0].unlink()
    trained = []
    monkeypatch.setattr(cifar_interp, "trained", lambda network, *given: trained.append(given) or network.eval())
    with torch.random.fork_rng():
        again = main(options)
    assert len(trained) == 1
    assert again[:-1] == found[:-1]
    assert [(one["arm"], one["seed"]) for one in found] == [(arm, seed) for seed in (0, 1) for arm in ARMS["generated"]]
    assert found[0]["temperature"] == 1
    values = finished(tmp_path, "generated")
    assert set(values["arm"]) == set(ARMS["generated"])
    told = capsys.readouterr().out
    assert "Does it help?" in told
    numbers = json.loads((tmp_path / "numbers" / "tables.json").read_text())
    assert numbers["rows"][1]["table"] == "Does it help?"


def test_images_are_shifted_and_mirrored_each_in_its_own_way():
    """By at most four pixels, with black from outside."""
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 3] = 1.0
    moved = augmented(images)
    assert moved.shape == images.shape
    places = {tuple(one.nonzero()[0].tolist()) for one in moved[:, 0] if one.any()}
    rows, columns = ({place[i] for place in places} for i in (0, 1))
    assert rows == set(range(9))
    assert columns == set(range(9))  # 3 or, mirrored, 5, with four pixels on both sides
    assert set(moved.unique().tolist()) == {0.0, 1.0}


def test_the_control_is_the_squared_norm_of_each_gradient():
    """It does not look at the guided gradient."""
    assert squared_norm(torch.full((2, 1, 1, 3), 2.0), torch.full((2, 1, 1, 3), torch.nan)).tolist() == [12.0, 12.0]


def test_images_are_read_from_the_compact_file(tmp_path):
    """All JPEG files end to end."""
    files = []
    for shade in (0, 255):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (shade,) * 3).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", jpeg=jpeg, offsets=offsets, labels=np.array([3, 5]))
    images, labels = cifar10(tmp_path, "test")
    assert labels.tolist() == [3, 5]
    assert images[1, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)
    assert len(cifar10(tmp_path, "test", 1)[0]) == 1


def test_the_network_has_the_parameters_of_the_paper():
    """0.27 million in ResNet-20."""
    assert sum(parameter.numel() for parameter in CifarResNet(3).parameters()) == 269_722
