"""The experiment on softmax-gradient LRP: what it measures, that it goes on where it was, and what it makes of it."""

import doctest
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import sglrp
import timm
import torch
from PIL import Image
from recipes.image_files import HEN, TENCH, write_images
from sglrp import Experiment, main, parse
from torch import nn

import lightning_xai as xai
from common.run import Run
from lightning_xai import attribution
from lightning_xai.attribution.lrp.methods import softmax_gradient
from lightning_xai.metrics import degenerate
from lightning_xai.metrics.patch_masking import SIZES
from lightning_xai.report import Results
from papers.sglrp import curves as sglrp_curves
from papers.sglrp import measures as sglrp_measures
from papers.sglrp import networks as sglrp_networks
from papers.sglrp.curves import accuracies, areas, condition, overtaken_at, pooled
from papers.sglrp.examples import worked_examples
from papers.sglrp.measures import patches, pointing, printed_seed, side_by_side
from papers.sglrp.networks import Judged, loaded
from papers.sglrp.report import tables

SEEN = ["LRP", "CLRP", "CLRP1", "CLRP2", "SGLRP", "Guided Grad-CAM"]


# the network of depthwise convolutions, where z+ hands on less than all
pytestmark = pytest.mark.filterwarnings("ignore:LRP expected the relevance:UserWarning")


def small_network():
    """Two classes from three colours, positive logits."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return layers.eval()


def subject_of(images, labels, masks=None, network=None):
    """A subject with images in [0, 1] that are not standardised."""
    torch.manual_seed(0)
    boxed = None if masks is None else list(zip(images, labels, masks, strict=True))
    return Judged(
        network or small_network(),
        (0.0,) * 3,
        (1.0,) * 3,
        ["a", "b", "c"],
        "0",
        name="small",
        images=list(zip(images, labels, strict=True)),
        boxed=boxed,
        n_classes=[1, 1, 1],
        color=(0.0,) * 3,
    )


@pytest.fixture
def subject():
    """Five random images, the objects in their corners."""
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(5, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = True
    return subject_of(images, [0, 1, 2, 0, 1], masks)


def args_of(folder, *options):
    """The command line of a run in a folder."""
    sizes = ["--n-images", "5", "--n-boxed", "5", "--n-mosaics", "2", "--confidence", "0"]
    return parse([*sizes, "--device", "cpu", "--run", str(folder), *options])


def measured(args, subject):
    """Everything that is measured."""
    experiment = Experiment(args, Run(args.run, args, free=("batch_size",)), [subject])
    found = {"patches": experiment.patches(), "pointing": experiment.pointing()}
    pairs = experiment.pairs(found["patches"])
    return found | {"mosaics": experiment.mosaics(pairs)}


def numbers(found):
    """Every number of nested dicts of lists."""
    if isinstance(found, dict):
        return np.concatenate([numbers(one) for one in found.values()])
    return np.array(found, float).ravel()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and measurements of a run without data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, main(["--fast-dev-run", "--device", "cpu", "--run", str(folder)])


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert sum(doctest.testmod(module).failed for module in (sglrp, sglrp_curves, sglrp_measures, sglrp_networks)) == 0


def test_a_run_without_data_writes_tables_and_pictures_of_all_figures(finished):
    """Planted evidence, three networks; the results are as others read them."""
    folder, found = finished
    results = Results.load(folder)
    assert {picture.file for picture in results.pictures} == {
        *("curves.png", "examples.png", "pairs.png", "networks.png", "failures.png")
    }
    assert all((folder / picture.file).stat().st_size > 0 for picture in results.pictures)
    titles = " ".join(table.title for table in results.tables)
    assert all(f"Figure {number}" in titles for number in ("11 (a)", "11 (b)", "13", "9", "8"))
    assert set(found["mosaics"]) == {"plain", "residual", "separable"}
    assert results.values["patches"] == json.loads(json.dumps(found["patches"]))
    assert "hits" not in results.values["pointing"]


def test_photographs_with_boxes_and_a_second_classifier(tmp_path):
    """Figures 8 and 9 need them."""
    write_images(tmp_path / "data" / "val", {TENCH: 2, HEN: 2}, (80, 100))
    boxed = tmp_path / "boxed"
    boxed.mkdir()
    for name in "ab":
        noise = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
        Image.fromarray(noise).save(boxed / f"{name}.png")
    lines = ["file,label,xmin,ymin,xmax,ymax", "a.png,fish,0,0,100,80", "b.png,fish,45,35,55,45"]
    (boxed / "boxes.csv").write_text("\n".join(lines) + "\n")
    (boxed / "label_to_imagenet.csv").write_text("label,imagenet_indices\nfish,0 1\n")
    options = ["--data", str(tmp_path / "data"), "--boxed", str(boxed), "--image-size", "32", "--model", "test_resnet"]
    beside = ["--beside", "--name other --model test_resnet --mean .5 .5 .5 --std .5 .5 .5"]
    found = main([*options, *beside, "--fast-dev-run", "--device", "cpu", "--run", str(tmp_path / "run")])
    assert set(found["mosaics"]) == {"test_resnet", "other"}
    assert sorted(found["pointing"]["share"])[1] == 1
    assert (tmp_path / "run" / "failures.png").exists()


class Unreachable(list):
    """Images of which some interrupt the run."""

    def __init__(self, images, where):
        super().__init__(images)
        self.where = where

    def __getitem__(self, index):
        if index in self.where:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_an_interrupted_run_gives_what_an_uninterrupted_one_gives(tmp_path, subject, monkeypatch):
    """Chunk by chunk, and what is finished is not computed again."""
    monkeypatch.setattr(sglrp, "CHUNK", 2)
    whole = measured(args_of(tmp_path / "whole"), subject)
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        measured(args_of(folder), replace(subject, images=Unreachable(subject.images, [3])))
    assert [path.name for path in (folder / "parts").iterdir()] == ["patches_0000.json"]
    args = args_of(folder, "--resume")
    rest = replace(subject, images=Unreachable(subject.images, [0, 1]))
    assert Experiment(args, Run(args.run, args), [rest]).patches() == whole["patches"]
    assert measured(args, subject) == whole


def test_results_do_not_depend_on_the_batch_size(tmp_path, subject):
    """Maps of an image know nothing of its neighbours, and none is lost."""
    one = measured(args_of(tmp_path / "one", "--batch-size", "1"), subject)
    all_at_once = measured(args_of(tmp_path / "all", "--batch-size", "5"), subject)
    assert len(one["patches"]["index"]) == len(one["pointing"]["share"]) == 5
    np.testing.assert_allclose(numbers(one), numbers(all_at_once), rtol=1e-4, atol=1e-6)


def test_patches_take_the_pixel_that_decides():
    """One red pixel is all that speaks for the first class: without it nothing is left to tell the classes apart."""
    images = torch.zeros(1, 3, 8, 8)
    images[0, 0, 2, 5] = 1.0
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].weight = nn.Parameter(128 * torch.eye(3)[:2, :, None, None])
    found = patches(subject_of(images, [0], network=network.eval()), images, torch.tensor([0]))
    expected = 0.5 - torch.tensor([2.0, 0.0]).softmax(0)[0].item()
    for name in SEEN:
        assert found["label"]["changes"][name][0] == pytest.approx([expected] * len(SIZES), abs=1e-6)
    assert found["label"]["changes"]["Random"][0][0] == 0
    assert found["label"]["probability"] == pytest.approx([0.5 - expected])


def test_the_second_class_is_explained_by_maps_of_its_own():
    """A green pixel speaks for it, beside the brighter red one; losing it costs it its probability."""
    images = torch.zeros(1, 3, 8, 8)
    images[0, 0, 2, 5], images[0, 1, 6, 1] = 1.0, 0.75
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].weight = nn.Parameter(128 * torch.eye(3)[:2, :, None, None])
    found = patches(subject_of(images, [0], network=network.eval()), images, torch.tensor([0]))
    before, after = torch.tensor([2.0, 1.5]).softmax(0)[1], torch.tensor([2.0, 0.0]).softmax(0)[1]
    for name in SEEN:
        assert found["second class"]["changes"][name][0][0] == pytest.approx((after - before).item(), abs=1e-6)


def test_pointing_counts_points_on_the_object(subject):
    """Of a map of noise the share covered, at every energy."""
    found = pointing(subject, *loaded(subject.boxed, range(5))[1:])
    assert found["share"] == [0.25] * 5
    assert np.array(found["hits"]["Random"])[:, -1].tolist() == [16] * 5
    assert np.array(found["points"]["Random"])[:, -1].tolist() == [64] * 5
    assert accuracies(found)["Random"][:, -1].tolist() == [0.25] * 5


def test_two_images_in_one_are_left_and_right():
    """Each half's mask covers its image."""
    both, halves = side_by_side(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    assert both.shape == (2, 3, 4, 8)
    assert (both[:, 0][halves[0]] == 0).all()
    assert (both[:, 0][halves[1]] == 1).all()
    assert (halves[0] ^ halves[1]).all()


def test_equation_10_is_the_gradient_of_the_softmax_and_sums_to_zero():
    """Equations 8, 10, 14 and 15, in float64; ours is the same up to a factor for each image."""
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0, 3, 2, 4])
    gradient = torch.autograd.grad(logits.softmax(1).gather(1, targets[:, None]).sum(), logits)[0]
    seed = printed_seed(logits.detach(), targets)
    torch.testing.assert_close(seed, gradient)
    torch.testing.assert_close(seed.sum(1), torch.zeros(4, dtype=torch.float64))
    ours = softmax_gradient(logits.detach(), targets)
    torch.testing.assert_close(seed / seed.gather(1, targets[:, None]), ours)


def test_a_saturated_softmax_leaves_equation_10_without_a_map():
    """It is counted, and the map of ours is there."""
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].weight = nn.Parameter(torch.tensor([[90.0, 0, 0], [0, 1.0, 0]])[:, :, None, None])
    found = patches(subject_of(images, [0], network=network.eval()), images, torch.tensor([0]))
    assert found["label"]["saturated"] == [True]
    assert found["second class"]["saturated"] == [False]
    assert found["label"]["nothing"]["SGLRP"] == [False]
    printed = attribution.LRP(seed=printed_seed, relu=True)
    assert degenerate(xai.explain(network, images, 0, attributions=printed)).all()


def test_negative_logits_of_the_target_are_counted():
    """Equation 7 reverses there, and LRP shows nothing."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    network[4].weight = nn.Parameter(torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
    network[4].bias = nn.Parameter(torch.tensor([0.0, -50.0]))
    images = torch.rand(1, 3, 8, 8)
    found = patches(subject_of(images, [1], network=network.eval()), images, torch.tensor([1]))
    assert found["label"]["reversed"] == [True]
    assert found["label"]["nothing"]["LRP"] == [True]


def curves(hits, points):
    """Pointing as it is measured, of two methods on the same images."""
    nothing = {name: [False] * len(one) for name, one in hits.items()}
    return {"hits": hits, "points": points, "nothing": nothing, "share": [0.5] * len(hits["SGLRP"])}


def test_pooled_accuracy_counts_points_and_the_mean_counts_images():
    """An image with many points counts for more in the pool."""
    found = curves({"SGLRP": [[1, 1], [1, 90]]}, {"SGLRP": [[1, 10], [1, 90]]})
    assert accuracies(found)["SGLRP"].mean(0) == pytest.approx([1.0, 0.55])
    assert pooled(found)["SGLRP"] == pytest.approx([1.0, 0.91])
    assert areas(found)["SGLRP"] == pytest.approx([0.55, 1.0])


def test_a_lead_that_is_lost_again_does_not_count():
    """Only the level from which on it lasts; a method that ends behind never overtakes."""
    ones = np.ones((4, 4))
    rival = np.full((4, 4), 0.5)
    lead = np.array([[0.9, 0.1, 0.6, 0.6]] * 4)
    assert overtaken_at((lead, rival), (ones, ones), 0).startswith("2 ")
    assert overtaken_at((lead[:, ::-1].copy(), rival), (ones, ones), 0).startswith("3 ")
    assert overtaken_at((rival - 0.1, rival), (ones, ones), 0) == "never, 0 %"


def test_conditions_of_figure_9_go_by_what_the_object_covers():
    """An object that was cropped away is in none."""
    groups = condition(np.array([0.9, 0.7, 0.3, 0.25, 0.0]))
    assert [group.tolist() for group in groups.values()] == [
        [True, True, False, False, False],
        [False, False, False, True, False],
        [False, False, True, False, False],
    ]


def test_worked_examples_are_those_made_by_hand():
    """Where z2 alone speaks for both other classes SGLRP takes away as much as CLRP: penalties sum to R_t."""
    rows = {row[0]: row[1:] for row in worked_examples().rows}
    third = "figure 3: z2 speaks for classes 2 and 3"
    assert rows[f"{third}; LRP"] == pytest.approx([20, 80, 0])
    assert rows[f"{third}; SGLRP"] == pytest.approx([100, 0, 0])
    fifth = "figure 5: z2 is all that speaks for classes 1 and 3"
    assert rows[f"{fifth}; CLRP"] == rows[f"{fifth}; SGLRP"] == pytest.approx([0, 0, 100])
    other = "figure 5, but z1 speaks for class 3, which is probable"
    assert rows[f"{other}; CLRP"] == pytest.approx([0, 50, 50])
    rare = 1 / (1 + np.exp(3))
    assert rows[f"{other}; SGLRP"][1] == pytest.approx(100 * (0.75 - rare) / (1 - rare), abs=1e-3)


def test_labels_that_stand_for_many_classes_are_compared_with_others(tmp_path, subject):
    """Section 5.2.3: birds and dogs against buses."""
    found = measured(args_of(tmp_path), subject)
    table = next(one for one in tables(found, [12, 1, 1], 0) if "5.2.3" in one.title)
    assert table.columns == ["", "10 classes or more (2)", "fewer (3)"]
    assert [row[0] for row in table.rows] == ["SGLRP - CLRP", "SGLRP - CLRP1", "SGLRP - CLRP2"]


def test_images_that_cannot_be_read_are_left_out():
    """Their index is not used for another one."""
    items = [("broken.jpg", 0), (torch.ones(3, 2, 2), 7)]
    index, _, labels = loaded(items, [0, 1])
    assert (index.tolist(), labels.tolist()) == ([1], [7])
    with pytest.raises(ValueError, match=r"none that can be read among \['broken.jpg'\]"):
        loaded(items, [0])


def test_cifar_images_with_a_network_of_timms_list(tmp_path):
    """The first of the file, whose networks `--model` finds by name."""
    stored = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(stored, "JPEG")
    jpeg = np.frombuffer(stored.getvalue() * 3, np.uint8)
    offsets = np.arange(4) * len(stored.getvalue())
    np.savez(tmp_path / "cifar10_test.npz", jpeg=jpeg, offsets=offsets, labels=np.array([3, 1, 2]))
    args = parse(["--data", str(tmp_path), "--model", "cifar_resnet20", "--n-images", "2", "--device", "cpu"])
    (found,) = sglrp.subjects(args)
    _, images, labels = loaded(found.images, [0, 1])
    assert labels.tolist() == [3, 1]
    assert found.predict(images).shape == (2, 10)
    assert found.classes[3] == "cat"
    assert timm.is_model("cifar_resnet44")


def test_classifiers_of_one_name_are_refused(tmp_path):
    """Their results would be mixed up."""
    write_images(tmp_path / "val", {TENCH: 1}, (40, 40))
    options = ["--data", str(tmp_path), "--model", "test_resnet", "--image-size", "32"]
    with pytest.raises(SystemExit, match="another name for each classifier"):
        sglrp.subjects(parse([*options, "--beside", "--model test_resnet"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "d"], "--data expected --model beside it"),
        (["--model", "resnet18"], "expected --data beside them"),
        (["--n-images", "0"], "expected 1 or more"),
        (["--data", "a.tar", "--model", "resnet18"], "expected a folder"),
        (["--data", "d", "--model", "resnet18", "--beside", "--name x"], "--model among them, got '--name x'"),
    ],
)
def test_wrong_command_lines_are_refused(options, message, capsys):
    """With what was expected."""
    with pytest.raises(SystemExit):
        parse(options)
    assert message in capsys.readouterr().err
