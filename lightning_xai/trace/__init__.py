"""One forward pass and everything that is asked of it.

The only folder that registers hooks (on modules or autograd nodes), shadows ``forward``, or changes a module's mode or
the grad mode. Whatever it changes it restores in ``finally``, so that the user's model is as before after any call.
"""

from lightning_xai.trace.arguments import not_finite, require_images, require_model
from lightning_xai.trace.attributes import copied
from lightning_xai.trace.calling import IMAGES, Calling, images_in, is_image_batch, kind_of, logits_of, naming_images
from lightning_xai.trace.capture import Capture
from lightning_xai.trace.double_backward import DoubleBackward, require_differentiable_backward, running_statistics_kept
from lightning_xai.trace.guided import guided
from lightning_xai.trace.hooks import AffineCall, forward_hooks, last_affine_call, tapped
from lightning_xai.trace.interception import Call, Handler, Interception, intercepted, spellings
from lightning_xai.trace.layers import find_layer, name_of
from lightning_xai.trace.listener import Listener
from lightning_xai.trace.modes import (
    batch_norm_evaluation,
    current_autocast,
    differentiable_attention,
    evaluation_mode,
    own_pass,
    plain_tensors,
)
from lightning_xai.trace.observer import Observer
from lightning_xai.trace.places import same_places
from lightning_xai.trace.points import pass_from_image, pass_from_layer, require_rectifiers_after
from lightning_xai.trace.postponed import Postponed
from lightning_xai.trace.probabilities import PROBABILITIES, are_probabilities, require_logits
from lightning_xai.trace.recording import predict
from lightning_xai.trace.rectifiers import Rectifiers
from lightning_xai.trace.sharding import has_tensor_parallelism, is_sharded, unsharded
from lightning_xai.trace.spatial import last_spatial_layer, spatial_layers
from lightning_xai.trace.trace import Trace, run

__all__ = [
    "IMAGES",
    "PROBABILITIES",
    "AffineCall",
    "Call",
    "Calling",
    "Capture",
    "DoubleBackward",
    "Handler",
    "Interception",
    "Listener",
    "Observer",
    "Postponed",
    "Rectifiers",
    "Trace",
    "are_probabilities",
    "batch_norm_evaluation",
    "copied",
    "current_autocast",
    "differentiable_attention",
    "evaluation_mode",
    "find_layer",
    "forward_hooks",
    "guided",
    "has_tensor_parallelism",
    "images_in",
    "intercepted",
    "is_image_batch",
    "is_sharded",
    "kind_of",
    "last_affine_call",
    "last_spatial_layer",
    "logits_of",
    "name_of",
    "naming_images",
    "not_finite",
    "own_pass",
    "pass_from_image",
    "pass_from_layer",
    "plain_tensors",
    "predict",
    "require_differentiable_backward",
    "require_images",
    "require_logits",
    "require_model",
    "require_rectifiers_after",
    "run",
    "running_statistics_kept",
    "same_places",
    "spatial_layers",
    "spellings",
    "tapped",
    "unsharded",
]
