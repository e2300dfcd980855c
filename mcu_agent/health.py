"""Who is at fault when work on a board fails, and what to do next: decisions without effects.

:mod:`mcu_agent.recovery` carries them out. The ladder: again on the same board after a power cycle, then on another
board; if that works, the first is quarantined; if it fails there in the same way, both run the known image, and boards
that pass are well, so that the image is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from mcu_agent.errors import AgentError
from mcu_agent.leases import BoardRecord


class Fault(Enum):
    """Whose fault an error is, as far as one can tell from it alone."""

    IMAGE = "image"  # the image's, for sure
    MISMATCH = "mismatch"  # wrong bits: the image's, or a board that computes wrongly
    DOUBTFUL = "doubtful"  # hangs: either
    RIG = "rig"  # the probe's, the wire's, the meter's
    CABLING = "cabling"  # the wrong part on the board: trying again there cannot help
    NONE = "none"  # nobody's here: no lease, no board free, a wrong rack file


class Step(Enum):
    """What to do after a failed attempt."""

    RAISE = "raise"
    RETRY = "retry"  # on the same board, after a power cycle
    MOVE = "move"  # to another board; this one becomes suspect
    JUDGE = "judge"  # by self-tests of all boards that were tried


class Verdict(Enum):
    """What the self-tests of the boards that were tried say."""

    IMAGE = "image"  # a board is well on which the image fails
    RIG = "rig"  # the boards are well now, and the image was never suspected
    BOARDS = "boards"  # no board that was tried is well
    UNKNOWN = "unknown"  # none could be tested


_DOUBTFUL = ("firmware_hang",)
_CABLING = ("wrong_board",)
_NONE = ("lease_lost", "no_board_free", "inventory", "unknown_board_kind", "no_known_image")
# The device gives its outputs and nothing else is missing, or the user stops it: not a question of health.
_IMAGE = ("firmware", "image_rejected", "firmware_fault", "wrong_image", "cycles_unknown", "image_at_fault")
LOST = "board_lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One failed attempt. ``reason`` is the error's, ``text`` what it says."""

    board_id: str
    fault: Fault
    reason: str
    text: str

    @property
    def why(self) -> str:
        """Reason and text, as a board's record holds them."""
        return f"{self.reason}: {self.text}"


def fault_of(error: AgentError) -> Fault:
    """Whose fault an error is. A class of errors that is not known here is the rig's where it is transient, else
    nobody's business but the caller's."""
    reason = error.reason
    if reason in _DOUBTFUL:
        return Fault.DOUBTFUL
    if reason == "bit_mismatch":
        return Fault.MISMATCH
    if reason in _CABLING:
        return Fault.CABLING
    if reason in _NONE:
        return Fault.NONE
    if reason in _IMAGE:
        return Fault.IMAGE
    return Fault.RIG if error.is_transient else Fault.NONE


def next_step(attempts: Sequence[Attempt], *, is_emulated: bool, has_other: bool) -> Step:
    """What to do after the last of ``attempts``; ``has_other`` says whether there is a board that was not tried.

    A wrong answer is looked at once more on another board, if there is one: it ends a study, so one board's word is not
    enough; emulated boards compute alike, so that another one has nothing to add there.

    Raises:
        ValueError: there are no attempts.
    """
    if not attempts:
        raise ValueError("no attempt has failed")
    last = attempts[-1]
    here = [one for one in attempts if one.board_id == last.board_id]
    elsewhere = [one.reason for one in attempts if one.board_id != last.board_id]
    if last.fault in (Fault.IMAGE, Fault.NONE):
        return Step.RAISE
    if last.fault is Fault.MISMATCH:
        return Step.MOVE if has_other and not is_emulated and not elsewhere else Step.RAISE
    if last.fault is Fault.CABLING:
        return Step.MOVE if has_other and not elsewhere else Step.JUDGE
    if len(here) == 1 and last.reason not in elsewhere:
        return Step.RETRY
    return Step.MOVE if has_other and not elsewhere else Step.JUDGE


def verdict(attempts: Sequence[Attempt], tests: Mapping[str, str | None]) -> Verdict:
    """What follows from the self-tests of the boards that were tried: for each what was wrong with it, empty where it
    passed, None where it could not be tested."""
    well = {board_id for board_id, fault in tests.items() if fault == ""}
    here = [one for one in attempts if one.board_id in well]
    # Only what went wrong in the same way each time, and could be the image's, is held against the image.
    if (
        here
        and len({(one.fault, one.reason) for one in here}) == 1
        and here[0].fault in (Fault.DOUBTFUL, Fault.MISMATCH)
    ):
        return Verdict.IMAGE
    if well:
        return Verdict.RIG
    return Verdict.BOARDS if any(fault is not None for fault in tests.values()) else Verdict.UNKNOWN


def is_hub_away(others: Sequence[BoardRecord], *, is_present: bool | None) -> bool:
    """Whether a hub, rather than a lost board on it, is at fault: the host does not see the hub (``is_present``, None
    where nobody knows), or all ``others`` on it, one at least, are lost as well."""
    if is_present is not None:
        return not is_present
    return bool(others) and all((record.quarantine or record.suspect).startswith(LOST) for record in others)
