"""The training term's options, from the command line of the main recipe to what is logged and learned."""

import csv

import pytest
from recipes.test_imagenet_interp import NETWORK, recipe, same, weights_of

from papers.interpretable_gradients.term import TermOptions

GUIDED = [*NETWORK, "--no-compare", "--lambda", "2", "--schedule", "constant"]
WEIGHT = "train/guided_gradient/weight"


def logged(folder, name="guided"):
    """What an arm logged of its training, row by row."""
    with (folder / name / "csv_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [{key: float(value) for key, value in row.items() if key.startswith("train/") and value} for row in rows]
    return [row for row in kept if row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The network of a run with the plain options."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe(folder, *GUIDED)
    return weights_of(folder, "guided")


@pytest.mark.parametrize(("fraction", "equal"), [(0.5, False), (1, True)])
def test_the_term_may_see_a_share_of_the_batch(fraction, equal, whole, tmp_path):
    """All of it is the default."""
    recipe(tmp_path / "run", *GUIDED, "--fraction", fraction)
    assert same(weights_of(tmp_path / "run", "guided"), whole) == equal


def test_the_term_may_be_taken_at_a_layer(whole, tmp_path):
    """Under the layer's name in the logs."""
    recipe(tmp_path / "run", *GUIDED, "--term-layer", "layer2")
    assert not same(weights_of(tmp_path / "run", "guided"), whole)
    rows = logged(tmp_path / "run")
    assert len(rows) == 2
    assert all(key.startswith("train/guided_gradient/layer2/") for row in rows for key in row)


def test_the_weight_may_follow_a_budget(tmp_path):
    """From where ``--lambda`` says, by what was measured in the first step; the plain network knows nothing of it."""
    recipe(tmp_path / "run", *NETWORK, "--lambda", 2, "--adaptive", 0.01)
    first, second = logged(tmp_path / "run")
    ratio = first["train/guided_gradient/parameter_norm_ratio"]
    assert first[WEIGHT] == pytest.approx(2**0.9 * (0.01 / ratio) ** 0.1)
    assert second[WEIGHT] == first[WEIGHT]
    assert all(WEIGHT not in row for row in logged(tmp_path / "run", "plain"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "0"], r"ValueError: `fraction` expected a number in \(0, 1\], got 0.0"),
        (["--term-layer", "layer5"], "ValueError: `layer` .*layer4"),
        (["--term-layer", "fc"], "ValueError: `layer` expected"),
        (["--adaptive", "-1"], "ValueError: `share` expected a finite number above 0"),
        (["--adaptive", "0.1", "--lambda", "20"], "ValueError: `bounds` expected .* and start 20.0"),
    ],
)
def test_a_term_that_cannot_be_ends_with_one_line_and_leaves_no_folder(options, message, tmp_path):
    """Tried before anything is written."""
    with pytest.raises(SystemExit, match=message):
        recipe(tmp_path / "run", *GUIDED, *options)
    assert not (tmp_path / "run").exists()


def test_terms_of_two_networks_share_no_module():
    """One that was evaluated would hand its mode on."""
    first, second = (TermOptions().loss(0.1) for _ in range(2))
    assert not set(first.modules()) & set(second.modules())
