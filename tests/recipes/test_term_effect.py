"""The experiment on the training term: its measures on paper, and a run end to end."""

import json

import pytest
import torch
from term_effect import main

from lightning_xai.scores import log_softmax
from papers.interpretable_gradients import arms as every_arm
from papers.interpretable_gradients.arms import PAPER
from papers.interpretable_gradients.effect import on_object, temperature
from papers.interpretable_gradients.effect_report import draw, finished, tables, verdict
from papers.interpretable_gradients.tasks import erased, task


def test_maps_are_scored_against_the_object():
    """Two of three parts of the energy and the peak on the object, whose pixels beat six of eight others."""
    maps = torch.tensor([[[6.0, 0.0, 2.0], [1.0, -5.0, -1.0]]])
    masks = torch.tensor([[[True, True, False], [False, False, False]]])
    found = on_object(maps, masks)
    assert found["energy"] == pytest.approx(100 * 6 / 9)
    assert found["pointing"] == 100
    assert found["AUROC"] == pytest.approx(100 * (4 + 2) / 8)  # 6 beats all four, 0 beats -5 and -1


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_logits_are_scaled_to_a_confidence(scale):
    """Whichever network is over- or underconfident."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(500, 5, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(500, generator=generator) < 0.7, logits.argmax(1), torch.zeros(500).long())
    heat = temperature(logits, labels, -1.5)
    assert log_softmax(logits / heat, labels).mean().item() == pytest.approx(-1.5, abs=1e-6)


def test_parts_of_images_are_black_and_some_images_as_a_whole():
    """What is not black is as it was; of many images about half are whole."""
    images, black = torch.rand(400, 3, 16, 16), torch.full((3, 1, 1), -2.0)
    found = erased(images, torch.Generator().manual_seed(0), black)
    assert torch.equal(found[found != -2], images[found != -2])
    hidden = (found == -2).flatten(1).float().mean(1)
    assert 0.4 < (hidden == 0).float().mean() < 0.6
    assert 0.02 < (hidden == 1).float().mean() < 0.1


def test_a_run_compares_arms_from_one_start_and_goes_on(tmp_path, monkeypatch):
    """Two arms; the networks that there are are not trained again."""
    names = ("cosine, -loss, BN training", "saliency guided")
    options = ["--fast-dev-run", "--run", str(tmp_path / "run"), "--seeds", "2", "--arms", *names]
    with torch.random.fork_rng():
        found = main(options)
        monkeypatch.setattr(every_arm, "trained", None)
        assert main([*options, "--resume"]) == found
    assert [one["arm"] for one in found] == 2 * ["plain", PAPER, *names]
    assert found[0]["temperature"] == 1
    assert {"Grad-CAM", "input gradient", "LRP", "SmoothGrad", "gaussian"} <= set(found[2]["truth"])
    assert {"AD", "AD at equal confidence", "insertion"} <= set(found[2]["maps"]["Grad-CAM"])


def test_tables_are_differences_paired_by_seed(tmp_path):
    """An arm one point above plain training in the first seed and three in the second; which is sure, and which way."""
    rows = []
    for seed, (level, arm) in enumerate([(10.0, 11.0), (20.0, 23.0)]):
        for name, value in (("plain", level), ("arm", arm)):
            drops = {"gaussian": {"AD at equal confidence": 50.0}, "Grad-CAM": {"AD at equal confidence": 50.0 - value}}
            about = {"arm": name, "strength": float(name == "arm"), "seed": seed, "accuracy": 90.0, "temperature": 1.0}
            rows.append(about | {"look": {}, "maps": drops, "truth": {}})
        (tmp_path / f"cifar10_{seed}.json").write_text(json.dumps({"rows": rows[-2:]}))
    values = finished(tmp_path, "cifar10")
    first = tables(values)[0]
    assert first.columns[1:] == ["Grad-CAM: AD of a Gaussian minus its own, points", "accuracy, %"]
    assert first.rows[0][0] == "arm, 1"
    assert first.rows[0][1]["mean"] == 2
    assert first.rows[0][2] == {"mean": 0, "low": 0, "high": 0}
    assert first.rows[-1][0] == "smallest visible"
    assert first.rows[-1][1] == pytest.approx((12.7062 + 1.3764) * 2**0.5 * 50**0.5 / 2**0.5, rel=1e-4)
    assert "better with arm +2.0; worse with none" in verdict(values)
    assert (tmp_path / draw(values, tmp_path / "one.png").file).stat().st_size > 5000


@pytest.mark.parametrize("arm", ["smooth teacher", "saliency guided", "random masks"])
def test_noise_does_not_enter_the_statistics_of_normalisations(arm):
    """At no strength an arm's step is plain training's: weights and running averages alike."""
    drawn = task("generated", None, small=True)
    states = []
    for name in ("plain", arm):
        torch.manual_seed(0)
        network = drawn.network().train()
        every_arm.loss_of(drawn, name, 0.0)(network, drawn.train.images[:8], drawn.train.labels[:8], 0).backward()
        gradients = {name: one.grad for name, one in network.named_parameters()}
        states.append(gradients | {name: one for name, one in network.named_buffers() if "running" in name})
        assert network.bn1.momentum == 0.1
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)


def test_an_unknown_arm_is_named(tmp_path):
    """With those that there are."""
    with pytest.raises(SystemExit, match=r"'mirrored CAM'\], got \['mirror'\]"):
        main(["--fast-dev-run", "--run", str(tmp_path / "run"), "--arms", "mirror"])


def test_a_task_and_its_data_belong_together(capsys):
    """CIFAR-10 has to be somewhere."""
    with pytest.raises(SystemExit):
        main(["--task", "cifar10"])
    assert "--task cifar10 expected --data" in capsys.readouterr().err
