"""What the tests on a GPU share: they are skipped, with the reason, where there is none that can run them."""

from __future__ import annotations

import pytest

from recipes import precision
from recipes.precision import Device


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The GPU, with Transformer Engine beside it."""
    device = precision.local_device()
    if device is None:
        pytest.skip("needs a GPU")
    if device.transformer_engine is None:
        pytest.skip(f"needs Transformer Engine beside the {device.name}: pip install 'transformer-engine[pytorch]'")
    return device
