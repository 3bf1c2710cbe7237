"""Drives a headless Chromium over its debugging protocol: open a page, press keys, look at it. For the browser view."""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""Debian: `apt-get install chromium`."""

START_TIMEOUT_S = 60.0


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.requested: list[str] = []
        """Every address that the page has asked for."""

    async def call(self, method: str, **parameters: object) -> dict[str, object]:
        """One command of the protocol and its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            said = json.loads((await self._socket.receive()).data)
            if said.get("method") in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                fields = said["params"]
                self.requested.append(fields.get("url") or fields["request"]["url"])
            if said.get("id") == self._number:
                return dict(said.get("result", {}))

    async def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression."""
        result = (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"]
        assert isinstance(result, dict)
        return result.get("value")

    async def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self.evaluate(expression):  # noqa: ASYNC110  # no event tells what a page shows
                await asyncio.sleep(0.1)

    async def click(self, x: int, y: int) -> None:
        """Press and release the left button at a place in pixels."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def type(self, text: str) -> None:
        """Press keys; a line feed is Enter."""
        for character in text:
            key: dict[str, object] = {"key": character, "text": character}
            if character == "\n":
                key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            await self.call("Input.dispatchKeyEvent", type="keyDown", **key)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in key.items() if k != "text"})

    async def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(str((await self.call("Page.captureScreenshot", format="png"))["data"]))


@asynccontextmanager
async def open_page(address: str, profile: Path) -> AsyncIterator[Page]:
    """A fresh browser that shows this address; needs CHROMIUM."""
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--window-size=1400,900", f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "HOME": str(profile)},
    )  # fmt: skip
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.call("Network.enable")
                await page.call("Page.navigate", url=address)
                yield page
    finally:
        process.terminate()
        await process.wait()


async def _port(path: Path) -> int:
    """Chromium tells its port by a file and by nothing else."""

    def said() -> str:
        return path.read_text() if path.exists() else ""

    async with asyncio.timeout(START_TIMEOUT_S):
        while "\n" not in said():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return int(said().split("\n")[0])
