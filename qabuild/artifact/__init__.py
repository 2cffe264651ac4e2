FOLDER = "artifacts"
"""Default output folder; each artifact has the name of its target there."""
