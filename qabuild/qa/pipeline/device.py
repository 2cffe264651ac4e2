"""The device of a model, and moving it to another."""

from __future__ import annotations

from typing import Any


def device_of(model: Any) -> Any:
    """The torch device that the model states, else that of its weights, else the CPU."""
    import torch

    device = getattr(model, "device", None)
    if device is None and hasattr(model, "parameters"):
        device = next((weight.device for weight in model.parameters()), None)
    return torch.device("cpu" if device is None else device)


def moved(model: Any, device: Any) -> Any:
    """The model on `device`: a name, a torch.device, or the number of an accelerator, as the stock pipeline has it.

    -1 leaves the model where it is; a number without an accelerator is the CPU. Raises ValueError for a model that
    accelerate spread over several devices.
    """
    if getattr(model, "hf_device_map", None) is not None:
        raise ValueError("The model is spread over devices by accelerate: leave out `device`")
    target = _device(device)
    if target is None or target == device_of(model):
        return model
    return model.to(target)


def _device(device: Any) -> Any:
    import torch

    if not isinstance(device, int):
        return torch.device(device)
    if device < 0:
        return None
    if torch.accelerator.is_available():
        return torch.device(torch.accelerator.current_accelerator().type, device)
    return torch.device("cpu")
