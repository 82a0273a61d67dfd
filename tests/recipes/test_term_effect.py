"""The experiment on the training term: its measures on paper, and a run end to end."""

import pytest
import term_effect
import torch
from term_effect import main

from lightning_xai.scores import log_softmax
from papers.interpretable_gradients import arms as every_arm
from papers.interpretable_gradients.arms import PAPER
from papers.interpretable_gradients.effect import on_object, temperature
from papers.interpretable_gradients.tasks import erased


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
    every = every_arm.arms
    names = ("cosine, -loss, BN training", "saliency guided")
    few = lambda task: {name: every(task)[name] for name in names}  # noqa: E731
    monkeypatch.setattr(term_effect, "arms", few)
    options = ["--fast-dev-run", "--run", str(tmp_path / "run"), "--seeds", "1"]
    with torch.random.fork_rng():
        found = main(options)
        monkeypatch.setattr(every_arm, "trained", None)
        assert main([*options, "--resume"]) == found
    assert [one["arm"] for one in found] == ["plain", PAPER, *names]
    assert found[0]["temperature"] == 1
    assert {"Grad-CAM", "input gradient", "LRP", "SmoothGrad", "gaussian"} <= set(found[2]["truth"])
    assert {"AD", "AD at equal confidence", "insertion"} <= set(found[2]["maps"]["Grad-CAM"])


def test_a_task_and_its_data_belong_together(capsys):
    """CIFAR-10 has to be somewhere."""
    with pytest.raises(SystemExit):
        main(["--task", "cifar10"])
    assert "--task cifar10 expected --data" in capsys.readouterr().err
