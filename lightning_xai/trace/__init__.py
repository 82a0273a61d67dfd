"""One forward pass and everything that is asked of it.

The only folder that registers hooks (on modules or autograd nodes), shadows ``forward``, or changes a module's mode or
the grad mode. Whatever it changes it restores in ``finally``, so that the user's model is as before after any call.
"""

from lightning_xai.trace.double_backward import DoubleBackward
from lightning_xai.trace.guided import guided
from lightning_xai.trace.layers import Observer, find_layer, last_spatial_layer, layers_of
from lightning_xai.trace.listening import Capture, Listener, Trace, capture_for, predict, run
from lightning_xai.trace.modes import batch_norm_evaluation, evaluation_mode, plain_tensors

__all__ = [
    "Capture",
    "DoubleBackward",
    "Listener",
    "Observer",
    "Trace",
    "batch_norm_evaluation",
    "capture_for",
    "evaluation_mode",
    "find_layer",
    "guided",
    "last_spatial_layer",
    "layers_of",
    "plain_tensors",
    "predict",
    "run",
]
