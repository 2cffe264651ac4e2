"""Exports and optimises with optimum, in place of `export` and `graphs.optimise`. It needs transformers 4.57."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from qabuild.models.backends.onnxruntime.graphs import FILE, opt_level
from qabuild.models.backends.torch_model import copy_checkpoint
from qabuild.models.checkpoint.load import load_config
from qabuild.models.runtime import Runtime

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


def export(checkpoint: Checkpoint, stage: Path) -> Path:
    """Export the checkpoint as an fp32 ONNX graph into `stage`. optimum's validation only warns, so it is off.

    optimum loads what `copy_checkpoint` writes: with a config that returns what the exporter expects.
    """
    from optimum.exporters.onnx import main_export

    source = stage.with_name("checkpoint")
    source.mkdir()
    copy_checkpoint(checkpoint, source)
    main_export(
        str(source),
        output=stage,
        task="question-answering",
        library_name="transformers",
        do_validation=False,
        no_post_process=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    shutil.rmtree(source)
    return stage


def optimise(exported: Path, stage: Path, level: int, runtime: Runtime, padding_side: str) -> Path:
    """Fuse the operators that ONNX Runtime has fused kernels for, as `graphs.optimise` does."""
    from optimum.onnxruntime import OptimizationConfig, ORTOptimizer

    config = OptimizationConfig(
        optimization_level=opt_level(level, runtime),
        optimize_for_gpu=runtime.device == "cuda",
        use_raw_attention_mask=padding_side == "left",
    )
    optimizer = ORTOptimizer([exported / FILE], load_config(exported))
    optimizer.optimize(config, save_dir=stage, file_suffix=None)
    return stage
