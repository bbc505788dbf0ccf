"""What holds for every file of tests."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True, scope="module")
def _own_accelerator() -> None:
    """Let no file of tests depend on the one before it in the same process: the first `Accelerator` of a process
    settles device and precision for all later ones, and another precision is an error."""
    AcceleratorState._reset_state(reset_partial_state=True)
