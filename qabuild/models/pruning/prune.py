"""Prunes a checkpoint: from a checkpoint and options to a checkpoint of the same shapes, with zeros where it is pruned.

In a subprocess: gradients take memory, and the build goes on if they take too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.models.pruning import importance, refit, widths
from qabuild.models.pruning.latency_table import Latency
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.structure import PARTS, architecture, layers, require_unpruned
from qabuild.system.process import Tell, run_in_child, serve
from qabuild.system.reporter import Reporter

if TYPE_CHECKING:
    import torch

    from qabuild.models.checkpoint.resolve import Checkpoint

BATCH_TOKENS = 4096
"""Maximum tokens of a batch, padding included."""


def prune_in_child(
    checkpoint: Checkpoint,
    options: Prune,
    directory: Path,
    *,
    latency: Latency | None = None,
    offline: bool,
    reporter: Reporter,
) -> Mapping[str, Any]:
    """Write the pruned checkpoint to `directory`. Returns the widths of its layers, as the manifest records them.

    Raises BadTarget for a model or data that cannot be pruned so.
    """
    request = {
        "checkpoint": checkpoint.to_dict(),
        "options": options.model_dump(mode="json"),
        "latency": latency and asdict(latency),
        "offline": offline,
    }
    with reporter.progress("prune", 2) as advance:
        return run_in_child(__name__, request, directory, "the pruning", lambda _: advance(1))


def _work(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    from qabuild.models.checkpoint.resolve import Checkpoint

    checkpoint = Checkpoint.from_dict(request["checkpoint"])
    options = Prune.model_validate(request["options"])
    latency = Latency(**request["latency"]) if request["latency"] else None
    return prune(checkpoint, options, Path(request["directory"]), tell, latency=latency, offline=request["offline"])


def prune(
    checkpoint: Checkpoint,
    options: Prune,
    directory: Path,
    tell: Tell = lambda _: None,
    *,
    latency: Latency | None = None,
    offline: bool = False,
) -> Mapping[str, Any]:
    """Prune in this process, see `prune_in_child`."""
    from qabuild.models.checkpoint.interface import positions
    from qabuild.models.checkpoint.load import copy_tokenizer, load_model, load_tokenizer
    from qabuild.models.training import examples
    from qabuild.models.training.collate import Collator, batches_by_length
    from qabuild.models.training.loss import answer_losses
    from qabuild.models.training.options import Train
    from qabuild.qa import data
    from qabuild.qa.model_inputs import input_names

    heads = options.prunes_heads(checkpoint.config)
    architecture(checkpoint.config, heads=heads)
    parts = tuple(latency.times) if latency else PARTS if heads else PARTS[:1]
    dataset = data.load(options.data, offline=offline)
    questions = dataset.questions
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint.directory)
    every = layers(model)
    require_unpruned(checkpoint.name, every)
    windows = examples.make(questions, tokenizer, Train())
    inputs = input_names(model, tokenizer)
    collate = Collator(windows, inputs, longest=positions(model.config))
    batches = [collate(rows.tolist()) for rows in batches_by_length(windows.windows.length, BATCH_TOKENS)]

    def losses(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        output = model(**{name: batch[name] for name in inputs})
        places = batch["start_positions"], batch["end_positions"]
        return answer_losses(output.start_logits, output.end_logits, *places, batch["attention_mask"])

    scores = importance.fisher(model, batches, losses, parts)
    tell({})
    before = widths.all_of(every)
    chosen = widths.choose(options, every, scores, latency)
    moments = [
        {part: refit.Moments(layer, part) for part in parts if width[part] < layer.count(part)}
        for layer, width in zip(every, chosen, strict=True)
    ]
    refit.collect(model, batches, [each for of_layer in moments for each in of_layer.values()], inputs)
    for layer, score, width, of_layer in zip(every, scores, chosen, moments, strict=True):
        for part, moment in of_layer.items():
            kept = sorted(score[part].topk(width[part]).indices.tolist())
            moment.remove()
            moment.refit(kept)
            layer.zero(part, kept)
    tell({})
    model.save_pretrained(directory)
    copy_tokenizer(checkpoint, directory)
    return {
        "widths": [[width["ffn"], width["heads"]] for width in chosen],
        "widths_before": [[width["ffn"], width["heads"]] for width in before],
        "flops": round(widths.operations(every, chosen) / widths.operations(every, before), 4),
        "examples": {**dataset.source, **windows.counts},
        **({"speedup": {"asked": options.speedup, "predicted": round(1 / latency.of(chosen), 3)}} if latency else {}),
    }


if __name__ == "__main__":
    serve(_work)
