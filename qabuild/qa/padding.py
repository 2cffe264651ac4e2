"""The models whose logits do not depend on padding."""

from __future__ import annotations

from typing import Any

PADDABLE = frozenset(
    {
        *("albert", "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
        *("ibert", "longformer", "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm"),
        *("roformer", "splinter", "squeezebert", "xlm-roberta", "xlm-roberta-xl"),
    }
)
"""Model types whose logits padding changes by rounding errors at most; the tests measure every supported one.

The other supported ones see tokens whose attention mask is 0: ConvBERT and Nyströmformer by convolutions, MobileBERT
since it embeds each token with its neighbours, BigBird since the blocks of its sparse attention are counted from the
end. A list, not a probe of the model: it costs nothing, and no probe shows what BigBird does beyond 704 tokens.
"""


def is_paddable(model: Any) -> bool:
    """Whether padding leaves the model's logits as they are; False for a model type that nobody has measured."""
    return getattr(getattr(model, "config", None), "model_type", None) in PADDABLE
