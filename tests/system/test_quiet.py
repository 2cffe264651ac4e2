"""What users do not see of compilers' warnings."""

from __future__ import annotations

import warnings

import pytest

from qabuild.system.quiet import quiet_tracing


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize(
    "message",
    [
        "`torch.jit.trace` is deprecated. Please switch to `torch.compile` or `torch.export`.",
        "`torch.jit.load` is not supported in Python 3.14+ and may break. Please switch to `torch.export`.",
    ],
)
def test_torchscripts_deprecation_is_hidden_in_every_form(message, category):
    """torch 2.14 made a FutureWarning of it, which Python shows by default."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet_tracing():
            warnings.warn(message, category, stacklevel=1)
        assert message not in [str(warning.message) for warning in shown]
        warnings.warn(message, category, stacklevel=1)
    assert message in [str(warning.message) for warning in shown], "outside the block it is shown"


def test_other_warnings_are_shown():
    with pytest.warns(FutureWarning, match="something else"), quiet_tracing():
        warnings.warn("something else", FutureWarning, stacklevel=1)
