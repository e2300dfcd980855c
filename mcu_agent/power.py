"""Switching a board off and on: by uhubctl or a command of the user's, and proving that its power was really cut.

Hubs are known to report a port as off while it still feeds the board (uhubctl issue 319), and a meter or a serial
adapter may feed it, too. So a token is left in the board's RAM beforehand, which must be gone afterwards.
"""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import AgentError, BoardLost, PowerFault, PowerNotCut
from mcu_agent.image import Image
from mcu_agent.rack import PowerSwitch

COMMAND_S = 20.0
BACK_S = 15.0  # for the host to find the board's probe again
_STATE = "{state}"
_TOKEN_BYTES = 32
_LOOK_S = 0.5
_ON_TRIES = 3  # a board that is left off is lost to everybody


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerCycle:
    """What a power cycle was. ``is_proved`` is None where no token could be left in the board's RAM before."""

    is_proved: bool | None
    seconds: float


def switch_command(switch: PowerSwitch, state: str) -> list[str]:
    """The program and arguments that switch ``"off"`` or ``"on"``."""
    if not switch.command:
        return ["uhubctl", "-l", switch.hub, "-p", str(switch.port), "-a", state]
    if any(_STATE in argument for argument in switch.command):
        return [argument.replace(_STATE, state) for argument in switch.command]
    return [*switch.command, state]


def power_cycle(
    switch: PowerSwitch,
    board: Board | None = None,
    image: Image | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> PowerCycle:
    """Switch a board off, wait, and switch it on again. With ``board`` and an ``image`` for it the cut is proved, as
    far as the board could still be talked to before; it is closed afterwards.

    Raises:
        PowerFault: the switch does not work; PowerNotCut: it says it does, but the board kept its power.
    """
    started = time.monotonic()
    token = secrets.token_bytes(_TOKEN_BYTES)
    is_marked = board is not None and image is not None and _leave(board, image, token)
    try:
        _switch(switch, "off")
        sleep(switch.off_s)
    finally:
        _switch_on(switch, sleep)
    is_proved = None
    if board is not None and image is not None and is_marked:
        _check_gone(board, image, token, switch, sleep)
        is_proved = True
    return PowerCycle(is_proved=is_proved, seconds=time.monotonic() - started)


def _switch_on(switch: PowerSwitch, sleep: Callable[[float], None]) -> None:
    for attempt in range(1, _ON_TRIES + 1):
        try:
            return _switch(switch, "on")
        except PowerFault:
            if attempt == _ON_TRIES:
                raise
            sleep(_LOOK_S)
    return None


def _switch(switch: PowerSwitch, state: str) -> None:
    command = switch_command(switch, state)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=COMMAND_S
        )
    except FileNotFoundError as error:
        hint = "install it, or name a command of your own under power" if not switch.command else "check power.command"
        raise PowerFault(f"power {state}: there is no program {command[0]}; {hint}") from error
    except subprocess.TimeoutExpired as error:
        raise PowerFault(f"power {state}: {_shown(command)} did not end within {COMMAND_S:g} s") from error
    except OSError as error:
        raise PowerFault(f"power {state}: {_shown(command)} could not be run: {error.strerror}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise PowerFault(f"power {state}: {_shown(command)} ended with {done.returncode}: {said or 'it says nothing'}")


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)


def _leave(board: Board, image: Image, token: bytes) -> bool:
    """Whether the token is in the board's RAM now; not where the board can no longer be talked to, which may be why it
    is switched off."""
    try:
        board.load(image)
        address = _place(board)
        board.write(address, token)
        return board.read(address, len(token)) == token
    except AgentError:
        return False
    finally:
        board.close()


def _place(board: Board) -> int:
    """The end of the RAM: neither the known image nor what programs the flash comes so far."""
    return board.kind.ram_end - _TOKEN_BYTES


def _check_gone(board: Board, image: Image, token: bytes, switch: PowerSwitch, sleep: Callable[[float], None]) -> None:
    tries = max(round(BACK_S / _LOOK_S), 1)
    try:
        for attempt in range(1, tries + 1):
            try:
                board.load(image)
                break
            except BoardLost:  # the host has not found it yet
                if attempt == tries:
                    raise
                sleep(_LOOK_S)
        found = board.read(_place(board), len(token))
    finally:
        board.close()
    if found == token:
        command = _shown(switch_command(switch, "off"))
        raise PowerNotCut(
            f"board {board.board_id} was switched off by {command} for {switch.off_s:g} s "
            "and kept its RAM: the hub does not cut the power of this port, or the board has power from elsewhere"
        )
