"""The screens in a browser: whom the server talks to, what the page loads, and that nothing outlives it."""

import asyncio
import os
import shlex
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from shoal.client.tui.web import PAGE_DIRECTORY, SCREEN_MARK, browser_server
from shoal.protocol.errors import AddressInUse
from tests.client.tui.chromium import CHROMIUM, open_page

KEY = "0123456789abcdef"


def client() -> aiohttp.ClientSession:
    """A browser of sorts: keeps cookies, of addresses in digits too."""
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


def test_only_our_own_page_with_the_key_is_answered() -> None:
    async def main() -> None:
        async with browser_server("exit 1", KEY, 0) as address, client() as session:
            home = address.partition("?")[0]

            async def status(path: str, **headers: str) -> int:
                async with session.get(home + path, headers=headers, allow_redirects=False) as answer:
                    return answer.status

            assert await status("") == 403
            assert await status("?key=wrong") == 403
            assert await status(f"?key={KEY}", Host="evil.example") == 403
            assert await status(f"?key={KEY}", Origin="http://evil.example") == 403
            assert await status("ws") == 403
            assert await status("static/js/textual.js") == 403
            assert await status(f"?key={KEY}") == 302
            assert await status("") == 200, "the cookie was given"
            assert await status("ws", Origin="http://evil.example") == 403
            assert await status("static/js/textual.js") == 200

    asyncio.run(main())


def test_the_page_names_no_other_host() -> None:
    page = (PAGE_DIRECTORY / "app_index.html").read_text(encoding="utf-8")
    assert "//" not in page.replace("<!--", "").replace("-->", "")


def test_a_port_that_is_taken_is_said() -> None:
    async def main() -> None:
        async with browser_server("exit 1", KEY, 0) as address:
            port = int(address.split(":")[2].partition("/")[0])
            with pytest.raises(AddressInUse):
                async with browser_server("exit 1", KEY, port):
                    pass

    asyncio.run(main())


@pytest.mark.socket
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_question_is_asked_in_a_real_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[3]
    monkeypatch.setenv(SCREEN_MARK, str(os.getpid()))
    monkeypatch.setenv("PYTHONPATH", f"{root / '.links'}:{root}")
    command = "exec " + shlex.join([sys.executable, "-m", "tests.client.tui.browser_screen", str(tmp_path / "talks")])

    async def main() -> list[str]:
        async with browser_server(command, KEY, 0) as address, open_page(address, tmp_path / "profile") as page:
            await page.wait_until("document.body.classList.contains('-first-byte')")
            await page.click(400, 400)
            async with asyncio.timeout(60):
                while not _saved(tmp_path):  # keys that come before the application listens are lost
                    await page.type("ihello\n")  # i: to the prompt, from wherever the click went
                    await asyncio.sleep(1)
            (tmp_path / "page.png").write_bytes(await page.picture())
            return page.requested

    requested = asyncio.run(main())
    assert all(address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:")) for address in requested)
    assert any(address.startswith("ws://") for address in requested)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert not [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]


def _saved(directory: Path) -> bool:
    return any(directory.glob("talks/conversations/*.json"))
