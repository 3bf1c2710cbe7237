"""What tests of the screens do again and again."""

from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from tests.client.tui.fakes import World


async def type_and_send(pilot: Pilot[None], text: str) -> None:
    """Type a question into the prompt, send it, and wait until all pieces but the last have come."""
    await pilot.pause()
    names = {" ": "space", "?": "question_mark", ".": "full_stop"}
    await pilot.press(*(names.get(character, character) for character in text), "enter")
    await pilot.pause()
    await pilot.pause()


async def workers_done(pilot: Pilot[None]) -> None:
    """Wait until no worker runs. One that a newer one has replaced, as the screens' timers do, has ended as well."""
    while True:
        try:
            return await pilot.app.workers.wait_for_complete()
        except WorkerCancelled:
            continue


async def answered(pilot: Pilot[None], there: World) -> None:
    """Let the model end its answer, and wait for it."""
    await pilot.pause()
    there.model.gate.set()
    await workers_done(pilot)
    await pilot.pause()
