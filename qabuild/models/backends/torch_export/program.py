"""Exports a model and loads the program. Imports torch on import: import it inside functions only."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from qabuild.models.backends import vet
from qabuild.models.backends.logit_check import TOLERANCES, outputs_of, probes, require_same
from qabuild.models.backends.torch_export import archive
from qabuild.models.backends.torch_model import Positional, TorchModel, completed, device, named
from qabuild.models.checkpoint.interface import positions
from qabuild.models.runtime import Runtime
from qabuild.qa.model_inputs import input_names
from qabuild.system import files, machine
from qabuild.system.cache import compiled_for_this_machine
from qabuild.system.quiet import quiet_logging

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHORTEST = 3
"""Tokens of the shortest input. Some architectures (MobileBERT) treat an input of two tokens as a special case."""

INDUCTOR = {"freezing": True}
"""Weights become constants: AOTInductor folds them, joins the projections of attention and packs them for oneDNN."""


def build(checkpoint: Checkpoint, runtime: Runtime, path: Path, *, aot: bool) -> dict[str, Any]:
    """Export the checkpoint's model on the runtime's device and write it to `path`; return the manifest's record.

    In half precision the weights themselves are converted, unlike under autocast, which would convert them again in
    every call: an export keeps autocast as it is.
    """
    from qabuild.models.checkpoint.load import load_tokenizer
    from qabuild.models.pruning.compact import load_compact

    target = device(runtime)
    tokenizer = load_tokenizer(checkpoint.directory)
    model = load_compact(checkpoint).to(target)
    inputs = input_names(model, tokenizer)
    batches = list(probes(tokenizer, inputs, model.config))
    expected = outputs_of(TorchModel(model, inputs, model.config, target), batches)
    longest = positions(model.config)
    with _quiet(), torch.no_grad():
        model.to(DTYPES[runtime.dtype])
        program = export(model, inputs, {name: tensor.to(target) for name, tensor in batches[0].items()}, longest)
        compile_aot(program, path) if aot else archive.save(program, path)
    record = {
        "inputs": list(inputs),
        "refused": [name for name in input_names(model) if name not in inputs],
        "device": runtime.device,
        "longest_input": longest,
        "instructions": list(machine.compiler_flags()) if aot else [],
    }
    compiled = load(path, record, model.config, runtime, aot=aot)
    difference = require_same(expected, compiled, batches, TOLERANCES[runtime.dtype], "the exported program")
    return {**record, "largest_difference": difference}


def export(model: Any, inputs: Sequence[str], example: Mapping[str, torch.Tensor], longest: int | None) -> Any:
    """The model's graph for any batch size, and for `SHORTEST` to `longest` tokens (None: without a limit)."""
    batch = torch.export.Dim("batch", min=1)
    sequence = torch.export.Dim("sequence", min=SHORTEST, max=longest)
    shapes = (tuple({0: batch, 1: sequence} for _ in inputs),)
    arguments = tuple(example[name] for name in inputs)
    with _without_disabled_autocast():
        return torch.export.export(Positional(model, inputs).eval(), arguments, dynamic_shapes=shapes, strict=False)


@contextmanager
def _without_disabled_autocast() -> Iterator[None]:
    """Make blocks that disable autocast plain blocks: it is off, and an export would hold a graph for each of them."""
    autocast = torch.autocast

    def plain_if_disabled(*args: Any, enabled: bool = True, **kwargs: Any) -> Any:
        return autocast(*args, **kwargs) if enabled else nullcontext()

    with mock.patch.object(torch, "autocast", plain_if_disabled):
        yield


def compile_aot(program: Any, path: Path) -> None:
    """Compile the program to native code for this processor, with all constants in it."""
    with _inductor_cache():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=INDUCTOR)


@contextmanager
def _inductor_cache() -> Iterator[None]:
    """Keep Inductor's intermediate files in qabuild's cache; by default they are in a folder of /tmp."""
    name, folder = "TORCHINDUCTOR_CACHE_DIR", compiled_for_this_machine("") / "inductor"
    before = os.environ.get(name)
    os.environ[name] = before or str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def load(path: Path, record: Mapping[str, Any], config: Any, runtime: Runtime, *, aot: bool) -> Any:
    """Load the program in `path` on its device. `record` is that of `build`."""
    target, inputs = device(runtime), record["inputs"]
    files.require_native(path)
    with _quiet():
        program = torch._inductor.aoti_load_package(str(path)) if aot else _load_program(path)

    def compute(**tensors: torch.Tensor) -> Any:
        return program(*(tensor.contiguous() for tensor in completed(tensors, inputs).values()))

    return named(TorchModel(compute, inputs, config, target, refused=record["refused"]), config)


def _load_program(path: Path) -> Callable[..., Any]:
    vet.vet(path, archive.problems)
    return torch.export.load(str(path)).module()  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch logs and warns of; comparing outputs finds the exporter's mistakes."""
    with quiet_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
