"""The step `recover`: trains a pruned checkpoint to answer as it did before it was pruned.

What is trained is the compact model, without the pruned places; the checkpoint has them again, as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.models.checkpoint.load import load_model
from qabuild.models.pruning.compact import Kept, compact, expand
from qabuild.models.training.examples import examples_of
from qabuild.models.training.fit import train
from qabuild.models.training.objectives import Recovery
from qabuild.models.training.options import Recover
from qabuild.models.training.request import Request
from qabuild.models.training.student import config_with_dropout
from qabuild.system.environment import integer
from qabuild.system.process import Tell


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """Train the compact model of `request.start` against `request.teacher`, and write a checkpoint with zeros."""
    import torch

    options = request.train
    assert isinstance(options, Recover)
    assert request.teacher
    _, examples = examples_of(request)
    torch.manual_seed(options.seed)
    model = load_model(request.start, config=config_with_dropout(request.start, options.dropout))
    kept = compact(model)
    objective = Recovery(
        load_model(request.teacher),
        alpha=options.alpha,
        temperature=options.temperature,
        hidden_states=options.hidden_states,
    )
    unpruned = load_model(request.start)  # before the training: ZeRO would partition it
    record = train(request, model, examples, objective, tell)
    if integer("RANK", 0) == 0:
        _write_unpruned_shapes(request, unpruned, kept)
    return {"examples": examples.counts, **record}


def _write_unpruned_shapes(request: Request, model: Any, kept: Kept) -> None:
    """Replace the weights in `request.directory`, those of the compact model, by ones of the shapes in its config."""
    from safetensors.torch import load_file

    files = sorted(request.directory.glob("*.safetensors"))
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in [*files, *request.directory.glob("*.index.json")]:
        file.unlink()
    expand(model, state, kept)
    model.save_pretrained(request.directory)
