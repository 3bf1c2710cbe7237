"""Pictures of all screens, always the same: fixed swarm, fixed clock, fixed size. For snapshots and for the documents.

python -m tests.client.tui.pictures     # draw the snapshots anew, after a change that is meant; then look at them
"""

import asyncio
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual.pilot import Pilot
from textual.strip import Strip

from shoal.client.tui.preferences import Preferences
from shoal.client.tui.top_bar import SCREENS
from tests.client.tui.driving import answered, type_and_send, workers_done
from tests.client.tui.fakes import FakeSwarm, World, small_swarm, some_events, world

SNAPSHOTS = Path(__file__).parent / "snapshots"
SIZES = ((80, 24), (132, 40))
NUM_SAME = 4
"""Drawings in a row that must be equal before a screen counts as done."""

THEMES = ("shoal-dark", "shoal-light", "shoal-contrast")


@dataclass(frozen=True)
class Picture:
    """One screen as SVG, and as the lines that it was drawn with."""

    svg: str
    strips: Sequence[Strip]


async def pictures(
    size: tuple[int, int], theme: str, directory: Path, swarm: FakeSwarm | None = None
) -> dict[str, Picture]:
    """Every screen after the same short conversation, by mode; `help` is that of the chat."""
    there = world(directory, swarm or small_swarm(), Preferences(theme=theme, saves_conversations=False))
    there.session.preferences_path = directory / "chat.toml"
    assert there.swarm is not None
    for event in some_events(there.swarm):
        there.clock.now += 0.001
        there.session.book(event)
    drawn = {}
    async with there.app.run_test(size=size) as pilot:
        await type_and_send(pilot, "What is a shoal?")
        await answered(pilot, there)
        for place, mode in enumerate(SCREENS, 1):
            await pilot.press(f"alt+{place}")
            drawn[mode] = await _at_rest(pilot, there)
        await pilot.press("f1")
        drawn["help"] = await _at_rest(pilot, there)
    return drawn


async def _at_rest(pilot: Pilot[None], there: World) -> Picture:
    """The screen when it has been the same for a while: on a busy machine one pause is not always enough."""
    seen: list[Sequence[Strip]] = []
    while len(seen) < NUM_SAME or any(strips != seen[-1] for strips in seen[-NUM_SAME:]):
        await workers_done(pilot)
        there.app.redraw()
        await workers_done(pilot)
        await pilot.pause()
        seen.append(_strips(there.app.screen))
    return Picture(plain_svg(there.app.export_screenshot(title="shoal chat")), seen[-1])


def plain_svg(svg: str) -> str:
    """Without the names that Rich draws by lot, and without fonts from a foreign host."""
    svg = re.sub(r"terminal-\d+-", "shoal-", svg)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "DejaVu Sans Mono, Menlo, Consolas, monospace")
    return "\n".join(line.rstrip() for line in svg.strip().splitlines()) + "\n"


def name_of(mode: str, size: tuple[int, int], theme: str) -> str:
    return f"{mode}-{size[0]}x{size[1]}-{theme.removeprefix('shoal-')}.svg"


def _strips(screen: object) -> Sequence[Strip]:
    strips: Sequence[Strip] = screen._compositor.render_strips()  # type: ignore[attr-defined]  # what the terminal gets
    return strips


def main() -> None:
    SNAPSHOTS.mkdir(exist_ok=True)
    for size in SIZES:
        for theme in THEMES:
            with tempfile.TemporaryDirectory() as directory:
                drawn = asyncio.run(pictures(size, theme, Path(directory)))
            for mode, picture in drawn.items():
                (SNAPSHOTS / name_of(mode, size, theme)).write_text(picture.svg, encoding="utf-8")


if __name__ == "__main__":
    main()
