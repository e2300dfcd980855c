"""Numbers as people read them: ``show(0.0312, "1", "error")`` → ``3.12 %``; ``studyfile.parse_quantity`` goes back."""

from __future__ import annotations

import math

# A ratio that counts mistakes reads best as a share; every other number without unit is a count.
_SHARES = ("error", "accuracy", "sparsity")
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_TITLES = {
    "error": "error (validation)",
    "test_error": "error (test)",
    "float_error": "error (float)",
    "pruned_float_error": "error (pruned, float)",
    "rom": "ROM",
    "ram": "RAM",
    "ram_static": "RAM, static",
    "flops": "FLOPs",
    "macs": "MACs",
    "arena": "arena",
    "stack_reserved": "stack reserved",
    "weights_bytes": "ROM of the weights",
    "code_bytes": "ROM of the layers' code",
    "runtime_bytes": "ROM of start-up and harness",
}


def title(name: str) -> str:
    """What a quantity is called where there is room: ``ram_static`` → ``RAM, static``."""
    return _TITLES.get(name, name.replace("_", " "))


def show(amount: float, unit: str, name: str = "") -> str:
    """Write a number in base units with the prefix a person would choose.

    NaN reads ``–``. Bytes use binary prefixes (``KiB``), shares per cent, spans of a minute or more ``4 min 10 s``.
    """
    if math.isnan(amount):
        return "–"
    if any(share in name for share in _SHARES):
        return f"{100 * amount:.2f} %"
    if unit == "byte":
        return _bytes(amount)
    if unit == "s":
        return _span(amount)
    if unit == "J":
        return _scaled(amount, _JOULES)
    return _count(amount) if unit == "1" else f"{amount:.4g} {unit}"


def rounded(amount: float, unit: str, name: str = "") -> str:
    """As :func:`show`, without zeros that say nothing: ``25 %``, ``64 KiB``, ``8 h``; for limits, which are round."""
    text = show(amount, unit, name).removesuffix(" 00 s").removesuffix(" 00 min")
    number, space, rest = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + rest


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def elapsed(seconds: float) -> str:
    """A span that is still growing: whole seconds, ``42 s`` or ``4 min 10 s``."""
    return _span(seconds) if seconds >= 59.5 else f"{seconds:.0f} s"


def exact(amount: float, unit: str, name: str = "") -> str:
    """As :func:`show`, but bytes and counts to the last one: ``61,720 bytes``, ``2,814,900``."""
    is_share = any(share in name for share in _SHARES)
    if unit not in ("byte", "1") or is_share or not float(amount).is_integer():
        return show(amount, unit, name)
    return f"{amount:,.0f}" + {"byte": " byte" if amount == 1 else " bytes", "1": ""}[unit]


def _bytes(amount: float) -> str:
    if abs(amount) < 1024:
        return f"{amount:.0f} B"
    kibibytes = amount / 1024
    return f"{kibibytes:.1f} KiB" if abs(kibibytes) < 1024 else f"{kibibytes / 1024:.2f} MiB"


def _span(seconds: float) -> str:
    if seconds < 59.5:
        return _scaled(seconds, _SECONDS)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _scaled(amount: float, prefixes: tuple[tuple[float, str], ...]) -> str:
    if amount == 0:
        return f"0 {prefixes[0][1]}"
    factor, unit = next((entry for entry in prefixes if abs(amount) >= entry[0]), prefixes[-1])
    return f"{amount / factor:.3g} {unit}"


def _count(amount: float) -> str:
    for factor, prefix in _COUNTS:
        if abs(amount) >= factor:
            return f"{amount / factor:.3g} {prefix}"
    return f"{amount:.4g}"
