"""FFN neurons and attention heads of a model's layers, and how to remove some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qabuild.errors import BadTarget

if TYPE_CHECKING:
    import torch

Part = Literal["ffn", "heads"]
PARTS: tuple[Part, ...] = ("ffn", "heads")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Names of modules: `layers` below the encoder without its head, the others below one layer."""

    layers: str = "encoder.layer"
    ffn: tuple[str, str] = ("intermediate.dense", "output.dense")
    """The linear layers before and behind the activation."""
    attention: str = "attention.self"
    """The module that splits its projections into heads."""
    projections: tuple[str, str, str] = ("query", "key", "value")
    """The linear layers below `attention` whose outputs are split."""
    attention_output: str = "attention.output.dense"
    prunes_heads: bool = True
    """Whether layers may have different numbers of heads."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What layers can lose."""
        return PARTS if self.prunes_heads else PARTS[:1]


_BERT = Architecture()
ARCHITECTURES: Mapping[str, Architecture] = {
    "albert": Architecture(
        layers="encoder.albert_layer_groups.0.albert_layers",  # one layer, used several times
        ffn=("ffn", "ffn_output"),
        attention="attention",
        attention_output="attention.dense",
    ),
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": Architecture(projections=("query_proj", "key_proj", "value_proj")),
    "distilbert": Architecture(
        layers="transformer.layer",
        ffn=("ffn.lin1", "ffn.lin2"),
        attention="attention",
        projections=("q_lin", "k_lin", "v_lin"),
        attention_output="attention.out_lin",
    ),
    "electra": _BERT,
    # Its bias of relative positions is one for each head of all layers.
    "mpnet": Architecture(
        attention="attention.attn",
        projections=("q", "k", "v"),
        attention_output="attention.attn.o",
        prunes_heads=False,
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}

_HEADS = ("num_attention_heads", "n_heads", "num_heads")
_WIDTHS = ("all_head_size", "dim")
"""Names that attention modules give to their number of heads, and to that times the size of a head."""


def architecture(config: Mapping[str, Any], *, heads: bool) -> Architecture:
    """The architecture of a checkpoint with this config.json.

    Raises BadTarget for one that cannot be pruned, with `heads` also for one that only its FFN can be pruned of.
    """
    model_type = config.get("model_type")
    found = ARCHITECTURES.get(str(model_type))
    if found is None:
        raise BadTarget(
            f"prune: a model of type {model_type!r} cannot be pruned",
            f"these can: {', '.join(sorted(ARCHITECTURES))}",
            key="prune",
        )
    if config.get("num_hidden_groups", 1) > 1:
        raise BadTarget(
            f"prune: a model of type {model_type!r} whose layers share several groups of weights cannot be pruned",
            "models with num_hidden_groups = 1 can",
            key="prune",
        )
    separate = model_type == "deberta-v2" and not config.get("share_att_key", False)
    if heads and (separate or not found.prunes_heads):
        why = "its positions have projections of their own" if separate else "its layers share a bias for each head"
        raise BadTarget(
            f"prune: the attention heads of a model of type {model_type!r} cannot be pruned: {why}",
            "prune its FFN alone: name prune.ffn or prune.speedup",
            key="prune",
        )
    return found


def require_blocks(config: Mapping[str, Any], round_to: int) -> None:
    """Raise BadTarget for layers that have fewer neurons than `round_to`."""
    neurons = config.get("intermediate_size", config.get("hidden_dim"))  # DistilBERT's key
    if isinstance(neurons, int) and round_to > neurons:
        raise BadTarget(
            f"prune.round_to: {round_to}, and its layers have {neurons} neurons",
            f"choose a number that divides {neurons}, such as {max(1, neurons // 16)}",
            key="prune.round_to",
        )


def require_unpruned(name: str, layers: Sequence[Layer]) -> None:
    """Raise BadTarget for a checkpoint that was pruned before: shares would be of its shapes, with their zeros."""
    if any(len(layer.live(part)) < layer.count(part) for layer in layers for part in PARTS):
        raise BadTarget(
            f"{name}: was pruned before",
            "prune the checkpoint that it was made of, to the size that you want",
            key="prune",
        )


class Layer:
    """One layer of a model: linear layers of its FFN and of its attention."""

    def __init__(self, module: torch.nn.Module, names: Architecture) -> None:
        self.ffn: tuple[Any, Any] = tuple(map(module.get_submodule, names.ffn))
        self.attention = module.get_submodule(names.attention)
        self.projections: Sequence[Any] = [self.attention.get_submodule(name) for name in names.projections]
        self.attention_output: Any = module.get_submodule(names.attention_output)

    @property
    def head_count(self) -> int:
        return int(getattr(self.attention, next(name for name in _HEADS if hasattr(self.attention, name))))

    @property
    def head_size(self) -> int:
        return int(self.projections[0].out_features) // self.head_count

    def output(self, part: Part) -> Any:
        """The linear layer that the units of `part` lead to: its input has `unit_size` columns for each unit."""
        return self.ffn[1] if part == "ffn" else self.attention_output

    def inputs(self, part: Part) -> Sequence[Any]:
        """The linear layers whose outputs are the units of `part`."""
        return [self.ffn[0]] if part == "ffn" else self.projections

    def count(self, part: Part) -> int:
        """How many neurons or heads there are."""
        return int(self.ffn[1].in_features) if part == "ffn" else self.head_count

    def unit_size(self, part: Part) -> int:
        """Columns of the output's input for each unit."""
        return 1 if part == "ffn" else self.head_size

    def columns(self, part: Part, units: Sequence[int]) -> torch.Tensor:
        """The columns of the output's input that belong to the units, in order."""
        import torch

        size = self.unit_size(part)
        return (torch.tensor(list(units), dtype=torch.long)[:, None] * size + torch.arange(size)).flatten()

    def zero(self, part: Part, kept: Sequence[int]) -> None:
        """Set all weights of the units that are not in `kept` to zero, so that they contribute nothing."""
        gone = self.columns(part, sorted(set(range(self.count(part))) - set(kept)))
        for linear in self.inputs(part):
            linear.weight.data[gone] = 0
            if linear.bias is not None:
                linear.bias.data[gone] = 0
        self.output(part).weight.data[:, gone] = 0

    def live(self, part: Part) -> list[int]:
        """The units that contribute: those that some weight of the output's input reads."""
        read = (self.output(part).weight != 0).any(0)
        return [int(unit) for unit in read.view(-1, self.unit_size(part)).any(1).nonzero().flatten()]

    def keep(self, part: Part, kept: Sequence[int]) -> None:
        """Remove all units that are not in `kept`."""
        import torch

        columns = self.columns(part, kept)
        if part == "heads":
            size = self.head_size
            for names, value in ((_HEADS, len(kept)), (_WIDTHS, len(kept) * size)):
                for name in names:
                    if hasattr(self.attention, name):
                        setattr(self.attention, name, value)
        with torch.no_grad():
            for linear in self.inputs(part):
                linear.weight = torch.nn.Parameter(linear.weight[columns].contiguous())
                linear.out_features = len(columns)
                if linear.bias is not None:
                    linear.bias = torch.nn.Parameter(linear.bias[columns].contiguous())
            output = self.output(part)
            output.weight = torch.nn.Parameter(output.weight[:, columns].contiguous())
            output.in_features = len(columns)


def layers(model: Any) -> list[Layer]:
    """The layers of a question-answering model whose type is one of `ARCHITECTURES`, first to last."""
    names = ARCHITECTURES[model.config.model_type]
    return [Layer(module, names) for module in _modules(model, names)]


def _modules(model: Any, names: Architecture) -> Iterator[torch.nn.Module]:
    yield from model.base_model.get_submodule(names.layers)
