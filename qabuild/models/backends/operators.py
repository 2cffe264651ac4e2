"""The operators of torch that compiled models may call: functions of tensors and numbers, without any other effect."""

from __future__ import annotations

ATEN = frozenset(
    {
        # Those of the traces and exports of every supported architecture, in every dtype.
        *("__and__", "_assert_scalar", "_assert_tensor_metadata", "_autocast_to_full_precision"),
        *("_autocast_to_reduced_precision", "_convolution", "abs", "add", "add_", "alias", "arange", "argmax"),
        *("bitwise_not", "bmm", "cat", "ceil", "chunk", "clamp", "contiguous", "conv1d", "conv2d", "cos", "cumsum"),
        *("detach_", "div", "div_", "dropout", "embedding", "eq", "expand", "fill_", "floor_divide", "full_like"),
        *("gather", "ge", "gelu", "gt", "im2col", "index", "item", "layer_norm", "le", "lift_fresh_copy", "linear"),
        *("log", "logical_not", "lt", "masked_fill", "matmul", "mean", "min", "mul", "multiply", "ne", "neg"),
        *("new_ones", "numpy_T", "ones", "pad", "permute", "pow", "relu", "repeat", "reshape", "reshape_as", "rsub"),
        *("scalar_tensor", "scaled_dot_product_attention", "select", "sign", "sin", "size", "slice", "softmax"),
        *("split", "sqrt", "squeeze", "stack", "sub", "sym_size", "sym_storage_offset", "tanh", "tensor", "to"),
        *("transpose", "type_as", "unbind", "unsqueeze", "unsqueeze_", "view", "where", "zeros", "zeros_like"),
        # Those of other values in their configs, such as activations and relative positions.
        *("clip", "einsum", "erf", "expm1", "hardswish", "hardtanh", "leaky_relu", "masked_fill_", "mish", "prelu"),
        *("sigmoid", "silu", "square"),
        # Their relatives, which other versions of transformers or torch may call instead.
        *("__or__", "__xor__", "_log_softmax", "_softmax", "_to_copy", "_unsafe_view", "addmm", "all", "amax", "amin"),
        *("any", "baddbmm", "bitwise_and", "bitwise_or", "celu", "clamp_max", "clamp_min", "clone", "constant_pad_nd"),
        *("conv3d", "copy_", "detach", "elu", "exp", "expand_as", "flatten", "flip", "floor", "fmod", "full"),
        *("group_norm", "index_put_", "index_select", "isfinite", "isin", "isinf", "isnan", "lift_fresh", "log1p"),
        *("log_softmax", "logical_and", "logical_or", "masked_scatter", "max", "maximum", "minimum", "mm", "mul_"),
        *("nan_to_num", "narrow", "native_layer_norm", "new_full", "new_zeros", "ones_like", "reciprocal", "relu6"),
        *("relu_", "remainder", "repeat_interleave", "rms_norm", "roll", "round", "rsqrt", "scatter", "selu"),
        *("slice_scatter", "softplus", "split_with_sizes", "sub_", "sum", "swapaxes", "swapdims", "t", "tile", "tril"),
        *("triu", "true_divide", "trunc", "unflatten", "var", "view_as", "zero_"),
    }
)
"""Names of ATen's operators, without their overloads."""
