"""Export of a checkpoint to ONNX by optimum."""

from __future__ import annotations

from pathlib import Path


def export(checkpoint: Path, stage: Path) -> Path:
    """The checkpoint as an ONNX graph in fp32. optimum's own validation only warns, so it is left out."""
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
