"""Chromium without a window, driven over a pipe by its own protocol: opens pages, asks them, takes pictures."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)

_PATIENCE_S = 30.0


class PageLeft(Exception):
    """The page that was asked has made way for another one."""


class Page:
    """One tab. ``complaints`` holds what it wrote to its console as errors, ``asked`` the addresses it fetched."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._last, self._rest = 0, b""
        self._session: str | None = None
        self._is_loaded = False
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def begin(self) -> None:
        tab = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, /, **parameters: Any) -> Any:
        """Call the browser and wait for its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise PageLeft(str(answer))
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, url: str) -> None:
        self._is_loaded = False
        self.send("Page.navigate", url=url)
        while not self._is_loaded:
            self._note(self._read())

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """The value of the expression once it is true."""
        deadline = monotonic() + seconds
        while True:
            with suppress(PageLeft):  # asked again, of the page that comes
                if found := self.ask(f"Promise.resolve({script})"):
                    return found
                assert monotonic() < deadline, (script, self.complaints, self.ask("document.body.innerText"))
                self.ask("new Promise((go) => setTimeout(go, 50))")

    def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def prefer(self, theme: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _read(self) -> Any:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE_S)
            some = os.read(self._from, 1 << 16) if ready else b""
            assert some, "the browser has ended or says nothing"
            self._rest += some
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        fields = event.get("params", {})
        self._is_loaded |= event.get("method") == "Page.loadEventFired"
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.append(fields["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(fields["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and fields["entry"]["level"] == "error":
            self.complaints.append(fields["entry"]["text"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser of its own with one tab; ended with the block."""
    reads, to_browser = os.pipe()
    from_browser, writes = os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4.
    start = f'exec "$@" 3<&{reads} 4>&{writes}'
    command = ["bash", "-c", start, "bash", str(CHROMIUM), *_FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        command, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as one:
        os.close(reads)
        os.close(writes)
        page = Page(to_browser, from_browser)
        try:
            page.begin()
            yield page
        finally:
            one.terminate()
            one.wait(20)
            os.close(to_browser)
            os.close(from_browser)
