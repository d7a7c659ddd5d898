"""Chromium without a window, which says how a document looks: sizes, requests, pictures, paper.

It is steered over a pipe with the DevTools protocol, so that no package is needed for it:
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CACHE = Path.home() / ".cache" / "ms-playwright"  # where playwright keeps its own
OPTIONS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
)  # fmt: skip
ENABLED = ("Page", "Runtime", "Log", "Network")  # parts of the protocol
TROUBLE = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
PATIENCE = 60  # seconds for an answer
REQUESTED = "Network.requestWillBeSent"
HIGH = 700  # pixels of the window


def found() -> str | None:
    """Return the path of a Chromium, from ``CHROMIUM``, the path of programs, or playwright."""
    named = os.environ.get("CHROMIUM")
    cached = sorted(CACHE.glob("chromium*/chrome-linux*/*"), reverse=True)
    programs = (shutil.which(name) for name in NAMES)
    own = (str(path) for path in cached if path.name in {"chrome", "headless_shell"})
    return named or next(filter(None, programs), None) or next(own, None)


class Browser:
    """One page of a running Chromium."""

    def __init__(self, outgoing: int, incoming: int) -> None:
        self.outgoing, self.incoming = outgoing, incoming
        self.numbers, self.left = count(1), b""
        self.session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for part in ENABLED:
            self.ask(f"{part}.enable")

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Return the answer to one command."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, **self.session}
        os.write(self.outgoing, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            ready, _, _ = select.select([self.incoming], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self.incoming, 1 << 16)
            assert part, "the browser has ended"
            self.left += part
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Show a file in a window of ``width`` pixels, light or dark, or as it would be printed."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=HIGH, mobile=False,
                 deviceScaleFactor=1)  # fmt: skip
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme_feature])
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not self._saw("Page.loadEventFired"):
            self.events.append(self._next())

    def _saw(self, method: str) -> bool:
        return any(event.get("method") == method for event in self.events)

    def trouble(self) -> list[dict[str, Any]]:
        """Return what the page wrote to the console, and the errors in it."""
        return [event["params"] for event in self.events if event.get("method") in TROUBLE]

    def requests(self) -> list[str]:
        """Return the URLs that were asked for since the page was opened, with its own."""
        sent = (event for event in self.events if event.get("method") == REQUESTED)
        return [event["params"]["request"]["url"] for event in sent]

    def value(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        done = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def picture(self) -> bytes:
        """Return the whole page as PNG."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        return base64.b64decode(self.ask("Page.printToPDF")["data"])


@contextmanager
def running(program: str, profile: Path) -> Iterator[Browser]:
    """Run Chromium, with its files in the folder ``profile``."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
    script = f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}'  # the numbers that it expects
    command = ["bash", "-c", script, program, *OPTIONS, f"--user-data-dir={profile}"]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command, pass_fds=high, **quiet) as process:
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            os.close(ours_out)  # it ends when nobody steers it any more
            os.close(ours_in)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
