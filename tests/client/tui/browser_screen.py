"""The process that the browser's test shows: the real application with a model that stands still.

python -m tests.client.tui.browser_screen DIRECTORY
"""

import asyncio
import os
import sys
from pathlib import Path

from shoal.client.tui.app import run_app
from shoal.client.tui.web import SCREEN_MARK
from tests.client.tui.fakes import small_swarm, world


def main() -> None:
    there = world(Path(sys.argv[1]), small_swarm())
    there.session.preferences_path = Path(sys.argv[1]) / "chat.toml"
    there.model.gate.set()
    asyncio.run(run_app(there.app, there.opener(), int(os.environ[SCREEN_MARK])))


if __name__ == "__main__":
    main()
