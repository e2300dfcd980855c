"""Errors of the compiler. They carry the numbers, and their text says what would work."""

from __future__ import annotations


class FirmwareError(Exception):
    """Base of everything the compiler raises on purpose."""


class Unsupported(FirmwareError):
    """The network holds something the compiler cannot turn into C."""

    def __init__(self, *, operator: str, node: str, reason: str, remedy: str) -> None:
        super().__init__(f"operator {operator}, node {node!r}: {reason}; {remedy}")
        self.operator = operator
        self.node = node
        self.reason = reason
        self.remedy = remedy


class AccumulatorOverflow(FirmwareError):
    """A sum of products could leave 32 bits, so the integer result would not be defined."""

    def __init__(self, *, layer: str, channel: int, bound: int) -> None:
        super().__init__(
            f"layer {layer!r}, output channel {channel}: the accumulator can reach {bound}, more than 32 bits hold "
            f"({2**31 - 1}); use fewer inputs a channel, or a larger weight scale where the bias dwarfs the weights"
        )
        self.layer = layer
        self.channel = channel
        self.bound = bound


class DoesNotFit(FirmwareError):
    """The linked image is larger than the board: ``sizes`` holds (needed, available) bytes of each region,
    ``overflows`` those of the regions that are too small."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        overflows = {region: pair for region, pair in sizes.items() if pair[0] > pair[1]}
        parts = [
            f"{region} needs {needed} bytes, the board has {available} ({needed - available} over)"
            for region, (needed, available) in overflows.items()
        ]
        super().__init__("the firmware does not fit: " + "; ".join(parts))
        self.sizes = sizes
        self.overflows = overflows

    @property
    def region(self) -> str:
        """The region that overflows, the first if both do."""
        return next(iter(self.overflows))

    @property
    def needed_bytes(self) -> int:
        return self.overflows[self.region][0]

    @property
    def available_bytes(self) -> int:
        return self.overflows[self.region][1]


class ToolchainError(FirmwareError):
    """The C compiler is missing, or failed on our own code."""


class ToolchainInterrupted(ToolchainError):
    """The C compiler was killed or ran out of time; it may well succeed on a quieter machine."""
