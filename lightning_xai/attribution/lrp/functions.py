"""The torch functions that a relevance rule or a slope is known for, by kind."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_xai.trace import spellings

SUMS = spellings(
    *("sum", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "fold"),
)
RECTIFIERS = spellings("relu", "leaky_relu", "prelu", "rrelu", "abs", "maximum")
MAXIMA = spellings(
    *("max_pool1d", "max_pool2d", "max_pool3d", "amax"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
)
MOVES = [
    *spellings(
        *("flatten", "view", "reshape", "permute", "transpose", "movedim", "swapaxes", "squeeze", "unsqueeze", "t"),
        *("stack", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "narrow"),
        *("pad", "expand", "repeat", "tile", "clone", "contiguous", "to", "float", "double"),
        *(
            "unflatten",
            "roll",
            "flip",
            "masked_fill",
            "index_select",
            "repeat_interleave",
            "gather",
            "unfold",
            "pixel_shuffle",
            "pixel_unshuffle",
            "channel_shuffle",
        ),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    ),
    Tensor.T.__get__,  # type: ignore[attr-defined]
    Tensor.mT.__get__,  # type: ignore[attr-defined]
]
MOVES_LIKE = spellings("expand_as", "view_as", "reshape_as", "type_as")
ASSIGNMENTS = spellings("setitem")
CONCATENATIONS = spellings("cat", "concat", "concatenate")
DIFFERENCES = [one for one in spellings("sub") if not one.__name__.startswith("__r")]
ADDITIONS = [*spellings("add"), *DIFFERENCES]
ELEMENTWISE = [*spellings("neg"), Tensor.__rsub__]
DIVISIONS = [one for one in spellings("div", "true_divide", "truediv") if not one.__name__.startswith("__r")]
PRODUCTS = spellings("mul", "multiply")
ACTIVATIONS = spellings(*("silu", "hardswish", "gelu", "mish", "elu", "selu", "celu", "softplus", "threshold"))
WINNERS = spellings("max", "min", "amin", "topk")
ADDED_PRODUCTS = spellings("addcmul")
POWERS = spellings("pow", "square")
FACTORS = spellings("rsqrt", "sqrt", "reciprocal", "exp")
LENGTHS = [*spellings("norm", "vector_norm"), torch.linalg.norm, torch.linalg.vector_norm]
ODD_ACTIVATIONS = spellings("tanh", "softsign", "local_response_norm")
CLIPS = spellings("hardtanh", "relu6", "clamp", "clip", "clamp_min", "clamp_max")
CLIPS_AT_ZERO = spellings("relu6")
GATES = spellings("sigmoid", "hardsigmoid")
CONVOLUTIONS = spellings("conv1d", "conv2d", "conv3d")
TRANSPOSED_CONVOLUTIONS = spellings("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
LINEAR = spellings("linear")
MATRIX_PRODUCTS = spellings("matmul", "bmm")
EINSTEIN_SUMS = spellings("einsum")
SOFTMAXES = spellings("softmax")
LAYER_NORMALIZATIONS = spellings("layer_norm")
GROUP_NORMALIZATIONS = spellings("group_norm")
MULTI_HEAD_ATTENTIONS = spellings("multi_head_attention_forward")
RMS_NORMALIZATIONS = spellings("rms_norm")
VECTOR_NORMALIZATIONS = spellings("normalize")
MAKERS = spellings(
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
)
ATTENTIONS = spellings("scaled_dot_product_attention")
NORMALIZATIONS = spellings("batch_norm")
