"""Serial ports of meters: found by serial number, opened by one owner, read by a thread that does nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mcu_agent.errors import InventoryError, MeterLost

Clock = Callable[[], float]

FIRST_DATA_S = 2.0  # how long a meter may take until its first readings arrive
QUIET_S = 0.05  # a stream that has been quiet for so long has ended
LARGEST_READ = 65_536


def serial_module() -> Any:
    """The package pyserial.

    Raises:
        InventoryError: it is not installed.
    """
    try:
        import serial  # a host without serial meters does not need it
        import serial.tools.list_ports
    except ImportError as error:
        raise InventoryError(
            f"meters on serial ports need pyserial: pip install 'edgefront[boards]' ({error})"
        ) from error
    return serial


def find_port(meter: str, ids: tuple[tuple[int, int], ...], serial_number: str, port: str, interface: str = "") -> str:
    """The device of a meter: ``port`` where given, else that of the USB serial number, else the only one there is.

    Args:
        meter: its name in messages. ids: the USB vendor and product ids it may have. interface: what the description of
            the right one of several ports of a meter contains.

    Raises:
        MeterLost: none is plugged in, or several are and nothing says which.
    """
    if port:
        return port
    found = [one for one in serial_module().tools.list_ports.comports() if (one.vid, one.pid) in ids]
    if serial_number:
        found = [one for one in found if (one.serial_number or "").lower() == serial_number.lower()]
    serials = {one.serial_number for one in found}
    if not found:
        which = f"with serial number {serial_number}" if serial_number else "at all"
        raise MeterLost(f"no {meter} {which} is plugged in; check cable and power, and `edgefront rack discover`")
    if len(serials) > 1:
        listed = ", ".join(sorted(str(one) for one in serials))
        raise MeterLost(f"several {meter} are plugged in ({listed}); name one by `serial` in the rack file")
    # A meter with several ports has them in the order of its interfaces.
    right = [one for one in found if interface.lower() in f"{one.description} {one.interface}".lower()]
    return str(min(one.device for one in right or found))


def port_error(meter: str, port: str, error: BaseException) -> MeterLost:
    """What to tell the user when ``port`` cannot be opened or has failed."""
    text = str(error)
    if "xclusively lock" in text or "busy" in text.lower():
        remedy = "another program has it open; close it (the vendor's app, another agent) and try again"
    elif "ermission" in text:
        remedy = "this user may not open it; install deploy/udev or join the group dialout"
    else:
        remedy = "check the cable and whether the meter has power"
    return MeterLost(f"{meter} at {port}: {text}; {remedy}")


def drain(port: Any) -> None:
    """Throw away what has arrived. (The operating system's own way raises another kind of error on a lost port.)"""
    while port.in_waiting:
        port.read(port.in_waiting)


class StreamReader:
    """Collects everything a port sends, and when. One use: ``start`` → ``stop``.

    The thread only reads and appends, so that a stream of 400 kB/s is never held up by work on it.
    """

    def __init__(self, port: Any, clock: Clock) -> None:
        self._port = port
        self._clock = clock
        self._pieces: list[bytes] = []
        self._times: list[float] = []
        self._error: BaseException | None = None
        self._total = self._awaited = 0
        self._has_data = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="meter-reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def wait_for(self, n_bytes: int, timeout_s: float = FIRST_DATA_S) -> bool:
        """Wait for ``n_bytes`` more; False where they did not come in time or the port failed."""
        self._has_data.clear()
        self._awaited = self._total + n_bytes
        if self._error is None:
            self._has_data.wait(timeout_s)
        return self._total >= self._awaited and self._error is None

    def stop(self) -> tuple[bytes, list[float], list[int]]:
        """End once the port is quiet: all bytes, when each piece came, and how many bytes had come by then.

        Raises:
            OSError: the port failed; pyserial's own error is one.
        """
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        counts, total = [], 0
        for piece in self._pieces:
            total += len(piece)
            counts.append(total)
        return b"".join(self._pieces), self._times, counts

    def _read(self) -> None:
        quiet_since = None
        try:
            while True:
                piece = self._port.read(1)
                if piece:
                    piece += self._port.read(min(self._port.in_waiting, LARGEST_READ))
                now = self._clock()
                if piece:
                    self._pieces.append(piece)
                    self._times.append(now)
                    self._total += len(piece)
                    if self._total >= self._awaited:
                        self._has_data.set()
                    quiet_since = None
                elif self._is_stopping.is_set():
                    quiet_since = now if quiet_since is None else quiet_since
                    if now - quiet_since >= QUIET_S:
                        return
        except (OSError, TypeError) as error:  # pyserial raises TypeError on a port closed under it
            self._error = OSError(str(error)) if isinstance(error, TypeError) else error
        finally:
            self._has_data.set()
