from pathlib import Path

FOLDER = "artifacts"
"""Default output folder; each artifact has the name of its target there."""


def failed_folder(goal: Path) -> Path:
    """Where the artifact lies instead of at `goal` if its verification fails."""
    named = goal if goal.name else goal.absolute()  # "." has no name
    return named.parent / f"{named.name}.failed"
