"""A headless Chromium driven over its debugging pipe (Chrome DevTools Protocol): no package needed but Chromium.

with Browser(tmp_path) as browser:
    browser.open(index)
    browser.run("document.title")
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    # Nothing may be looked up: a page that needs a network fails here.
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)
PATIENCE = 60.0
"""Seconds after which a browser that does not answer is given up."""


def program() -> str:
    """Path of Chromium, installed if this is root's Debian; the test is skipped where there is none."""
    if _found() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = "apt-get update && apt-get install -y --no-install-recommends chromium"
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["sh", "-c", install], capture_output=True, timeout=300, env=environment)
    found = _found()
    if found is None:
        pytest.skip("needs Chromium (as root: apt-get install chromium) to look at the page")
    return found


def _found() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab. `problems` collects console errors, uncaught exceptions and everything that was asked of a network."""

    def __init__(self, home: Path) -> None:
        self.downloads = home / "downloads"
        self.downloads.mkdir(parents=True)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict] = []
        self._buffer, self._last, self._session = b"", 0, None
        commands_read, self._write = _pipe()
        self._read, events_write = _pipe()
        command = [program(), *FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"]
        # Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
        redirected = f'exec "$@" 3<&{commands_read} 4>&{events_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command],
            pass_fds=(commands_read, events_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_read)
        os.close(events_write)

    def __enter__(self) -> Browser:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
        except (OSError, TimeoutError):
            self._process.kill()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: object) -> dict:
        """One command of the protocol and its answer."""
        self._last += 1
        message: dict = {"id": self._last, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, page: Path, width: int = 1280, height: int = 900) -> None:
        """Load a file and wait for it."""
        self.resize(width, height)
        self._events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events))

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page in CSS pixels; below 600 wide it is a telephone."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )

    def run(self, javascript: str) -> object:
        """The value of an expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=javascript, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", javascript))
        return answer["result"].get("value")

    def wait_for(self, true) -> None:
        """Wait until `true()` holds, an expression of the page if it is a string."""
        end = time.monotonic() + PATIENCE
        while not (self.run(true) if isinstance(true, str) else true()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {PATIENCE:g} s: {true}")
            self.run("new Promise(done => setTimeout(done, 30))")

    def screenshot(self, path: Path, selector: str | None = None) -> None:
        """Write what is to be seen as PNG: the whole page, or one element of it."""
        self.run("new Promise(done => setTimeout(done, 300))")
        options: dict = {}
        if selector:
            options["clip"] = self.run(
                f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect(); return "
                "{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}; })()"
            )
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, **options)["data"]
        path.write_bytes(base64.b64decode(data))

    def _message(self) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("Chromium does not answer")
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        if "method" in message:
            self._note(message)
        return message

    def _note(self, event: dict) -> None:
        self._events.append(event)
        method, details = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(details["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.problems.append(str(details["args"]))
        elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(details["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])


def _pipe() -> tuple[int, int]:
    """A pipe whose descriptors lie above those that bash is asked to redirect."""
    raised = []
    for end in os.pipe():
        raised.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20))
        os.close(end)
    return raised[0], raised[1]
