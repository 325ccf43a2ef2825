"""Self-attention whose projections are plain Linear layers over ``[B, T, D]``, so that `capture` can see them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def self_attention(name: str, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Return what ``torch.nn.functional.multi_head_attention_forward`` does with these arguments, to rounding.

    That function mixes samples with positions (``[T·B, D]``) in its out-projection. Here both projections are
    ``F.linear`` on ``[B, T, D]``. `name` is that of one of the attention's layers, for the message.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    x, heads = given["query"], given["num_heads"]
    tensors = ("attn_mask", "key_padding_mask", "bias_k", "static_k", "static_v")
    foreign = [
        *(what for what in tensors if given[what] is not None),
        *(what for what in ("add_zero_attn", "is_causal", "use_separate_proj_weight") if given[what]),
        *(["a query that is not key and value"] if not x is given["key"] is given["value"] else []),
        *(["dropout"] if given["training"] and given["dropout_p"] > 0 else []),
        *(["an input without a batch"] if x.dim() != 3 else []),
    ]
    if foreign:
        raise NotImplementedError(
            f"capture: expected the attention of {name!r} to be self-attention of a batch through one packed "
            f"in-projection, without masks; got {', '.join(foreign)}. Pass layers=[…] with the other layers."
        )
    projected = F.linear(x.transpose(0, 1), given["in_proj_weight"], given["in_proj_bias"])  # [B, T, 3·D]
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
    weights = None
    if given["need_weights"]:
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)  # [B, heads, T, T]
        mixed = weights @ v
        weights = weights.mean(1) if given["average_attn_weights"] else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    mixed = mixed.transpose(1, 2).flatten(2)  # [B, T, D]
    return F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"]).transpose(0, 1), weights
