"""Switches off the telemetry of libraries: nothing is sent that the user did not ask for.

OpenVINO and NNCF know no such variable: `models/backends/openvino/core.py` blocks their package for telemetry.
"""

from __future__ import annotations

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: otherwise its import writes a device id to the user's cache folder
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub and Xet
    "MLFLOW_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",  # a Ray that this process starts
    "DO_NOT_TRACK": "1",  # a convention of several libraries
}


def switch_off() -> None:
    """Set the variables that libraries read when they are imported, for this process and its children.

    A variable that the user has set stays as it is.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
