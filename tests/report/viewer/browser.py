"""Headless Chromium, driven by its debugging protocol: real pointer, real keys, real pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tornado.websocket import WebSocketClientConnection, websocket_connect

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
_PATIENCE = 60.0  #: seconds
_SAID = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}


class Browser:
    """One page."""

    def __init__(self, profile: Path, *, size: tuple[int, int] = (1280, 800)) -> None:
        assert BROWSER is not None
        self.console: list[str] = []
        self.requests: list[str] = []
        self._process = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._loop, self._number = asyncio.new_event_loop(), 0
        self._line = self._loop.run_until_complete(_connect(_address(profile / "DevToolsActivePort")))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(*size)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), _PATIENCE))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        own = self._number
        await self._line.write_message(json.dumps({"id": own, "method": method, "params": parameters}))
        while True:
            said = json.loads(await self._line.read_message() or "null")
            if said.get("method") in _SAID:
                self.console.append(json.dumps(said["params"]))
            if said.get("method") == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            if said.get("id") == own:
                assert "error" not in said, said
                return said["result"]

    def run(self, script: str) -> Any:
        """The value of an expression."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.console)
            time.sleep(0.05)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # else an address with another "#" would be the same page
        self.call("Page.navigate", url=url)
        self.settle()

    def settle(self) -> None:
        """Until all is drawn: two frames later it still is."""
        frames = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(true))))"
        self.wait(f"{frames}.then(() => document.documentElement?.dataset.ready === 'true')")

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.settle()

    def wheel(self, x: float, y: float, turn: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=turn)
        self.settle()

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self) -> npt.NDArray[np.uint8]:
        """What is on the screen, (height, width, 3) RGB."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]  # type: ignore[return-value]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._loop.close()


def _address(port_file: Path) -> str:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if port_file.is_file() and len(words := port_file.read_text().split()) == 2:
            with urllib.request.urlopen(f"http://127.0.0.1:{words[0]}/json", timeout=20) as reply:
                if pages := [p for p in json.load(reply) if p["type"] == "page"]:
                    return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise TimeoutError("the browser did not start")


async def _connect(url: str) -> WebSocketClientConnection:
    return await websocket_connect(url, max_message_size=2**28)
