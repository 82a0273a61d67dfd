"""Intercepted passes: every way of calling a function is seen, and nothing stays behind."""

import pytest
import torch
import torch.nn.functional as F
from support import Unhappy, assert_same_state, random_images, state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_xai.trace.interception import intercepted, spellings

RELU_AND_SUM = spellings("relu", "add", "sub")


class Recorder:
    """A handler that runs each function as it is and notes its name and the marks it saw."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.marks: list[list[str]] = []

    def __call__(self, call):
        self.names.append(call.function.__name__)
        self.marks.append([call.marks[one] for one in call.on_path])
        return call.run(), self.names[-1]


def images():
    """A leaf that requires gradients."""
    return random_images(2).requires_grad_()


def recorded(function, model=None):
    """What a recorder saw of a function of the images."""
    recorder, given = Recorder(), images()
    with intercepted(model or nn.Identity(), given, dict.fromkeys(RELU_AND_SUM, recorder), "images"):
        function(given)
    return recorder


WAYS = {
    "module": nn.ReLU(),
    "in-place module": lambda x: nn.ReLU(inplace=True)(x + 0),
    "function": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "in-place method": lambda x: (x + 0).relu_(),
    "in-place function": lambda x: F.relu_(x + 0),
    "positional flag": lambda x: F.relu(x + 0, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_a_function_is_seen(way):
    """Modules, functions, methods, in place or not."""
    assert recorded(WAYS[way]).names[-1].strip("_") == "relu"


@pytest.mark.parametrize("way", [lambda x: x + 1, lambda x: 1 - x, lambda x: (x + 0).__iadd__(x), lambda x: x - x])
def test_operators_are_seen(way):
    """Reflected and in-place ones included."""
    assert recorded(way).names


def test_what_descends_from_the_images_is_marked_and_nothing_else():
    """Functions of parameters are nobody's business; a result carries its handler's mark."""
    parameter = nn.Parameter(torch.ones(8))
    recorder = recorded(lambda x: F.relu(x) + F.relu(parameter))
    assert recorder.names == ["relu", "add"]
    assert recorder.marks == [["images"], ["relu"]]


def test_an_in_place_result_has_its_new_mark():
    """The tensor is the same object, what is known of it is not."""
    recorder = recorded(lambda x: (x + 0).relu_() + 1)
    assert recorder.marks == [["images"], ["add"], ["relu_"]]


def test_a_tensor_that_is_handed_back_as_it_is_keeps_its_mark():
    """Dropout in evaluation mode returns its argument."""
    given, recorder = images(), Recorder()
    with intercepted(nn.Identity(), given, {F.dropout: recorder, **dict.fromkeys(RELU_AND_SUM, recorder)}, "images"):
        F.relu(F.dropout(given, training=False))
    assert recorder.marks == [["images"], ["images"]]


def test_shapes_and_dtypes_may_be_asked_for():
    """What gives no tensor hands on no relevance."""
    recorded(lambda x: (x.shape, x.dtype, x.size(0), x.dim(), x.is_contiguous(), len(x)))


class Cumulative(nn.Module):
    """Calls something that has no handler."""

    def forward(self, values):
        return values.cumsum(1)


def test_a_function_without_a_handler_is_an_error_that_names_it_and_its_module():
    """The innermost module that is running."""
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Identity(), Cumulative()))
    with pytest.raises(NotImplementedError, match=r"`cumsum` in '1.1' \(Cumulative\) has no relevance rule"):
        recorded(model, model)


@pytest.mark.parametrize(
    "way", [lambda x: x.detach(), lambda x: x.data, lambda x: x.__setitem__(0, 0), lambda x: x > 0]
)
def test_ways_out_of_the_graph_are_errors(way):
    """Relevance would get lost unnoticed."""
    with pytest.raises(NotImplementedError, match="has no relevance rule"):
        recorded(lambda x: way(x + 0))


class Doubled(torch.autograd.Function):
    """A custom function, whose backward pass knows nothing of relevance."""

    @staticmethod
    def forward(ctx, values):
        return values + values

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def gated(values: torch.Tensor) -> torch.Tensor:
    """To be scripted."""
    return values * values.sigmoid()


def test_results_of_custom_functions_are_errors():
    """The next function notices that nobody saw where they come from."""
    with pytest.raises(NotImplementedError, match=r"`relu` in .* custom autograd function or by scripted"):
        recorded(lambda x: F.relu(Doubled.apply(F.relu(x))))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # models that were scripted still exist
def test_results_of_scripted_functions_are_errors():
    """Function modes do not see what is inside."""
    scripted = torch.jit.script(gated)
    with pytest.raises(NotImplementedError, match=r"`relu` in .* custom autograd function or by scripted"):
        recorded(lambda x: F.relu(scripted(F.relu(x))))


def test_weights_may_be_computed_from_parameters():
    """Weight standardisation, say: no error, and no graph."""
    parameter, seen = nn.Parameter(torch.ones(8)), []
    recorded(lambda x: seen.append(parameter * 2) or F.relu(x) + seen[0])
    assert not seen[0].requires_grad


def test_parts_that_run_without_gradients_are_on_the_path():
    """A frozen backbone under no_grad hands relevance on like the rest."""

    def frozen(x):
        with torch.no_grad():
            hidden = F.relu(x)
        assert hidden.requires_grad
        return hidden + 1

    assert recorded(frozen).names == ["relu", "add"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_an_error(reentrant):
    """Its functions run again where nobody stands in for them."""
    with pytest.raises((RuntimeError, NotImplementedError), match=r"without checkpointing|custom autograd function"):
        recorded(lambda x: F.relu(checkpoint(F.relu, F.relu(x), use_reentrant=reentrant)))


def test_autocast_is_off_inside():
    """Rules need the precision of the weights."""
    linear, given, seen = nn.Linear(8, 2), images(), []

    def handler(call):
        seen.append(call.run())
        return seen[-1], None

    with torch.autocast("cpu", torch.bfloat16), intercepted(linear, given, {F.linear: handler}, None):
        linear(given)
    assert seen[0].dtype == torch.float32


def test_nothing_stays_behind_after_an_exception():
    """Neither in the model nor in the process."""
    model = nn.Sequential(nn.ReLU(), Unhappy())
    model[1].happy = False
    before = state_of(model)
    with pytest.raises(ArithmeticError):
        recorded(model, model)
    assert_same_state(before, state_of(model))
    assert torch.overrides._get_current_function_mode() is None
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        pass
