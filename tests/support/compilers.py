"""The compilers that tests use."""

from __future__ import annotations

import pytest

from tasks.firmware import toolchain

COMPILERS = ("zig", "gcc")


def require(compiler: str) -> None:
    """Skip the test where ``compiler`` is not installed."""
    if compiler == "gcc" and toolchain.gcc_path() is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
