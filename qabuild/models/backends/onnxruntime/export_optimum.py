"""Exports a checkpoint to ONNX with optimum."""

from __future__ import annotations

from pathlib import Path


def export(checkpoint: Path, stage: Path) -> Path:
    """Export the checkpoint as an fp32 ONNX graph into `stage`. optimum's validation only warns, so it is off."""
    from optimum.exporters.onnx import main_export

    main_export(
        str(checkpoint),
        output=stage,
        task="question-answering",
        library_name="transformers",
        do_validation=False,
        no_post_process=True,
        local_files_only=True,
    )
    return stage
