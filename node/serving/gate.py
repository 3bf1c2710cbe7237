"""The switch between working and not: a pause leaves no request unanswered and no stranger in doubt.

Closing refuses new requests at once, for experts' work and for their weights, tells connected clients to go elsewhere,
withdraws our records, lets the kernel finish what it has begun and refuses what still waits for it. Clients ask
replicas; nobody sees an error. Experts stay in memory.
"""

import asyncio
from collections.abc import Sequence

from shoal.node.announcer import Announcer
from shoal.node.seeding.seeder import Seeder
from shoal.node.serving.admission import Admission
from shoal.node.serving.server import ExpertServer
from shoal.protocol.net.channel import GatedListener

PAUSE_GRACE_S = 0.8
"""What is in flight may take this long before what still waits is refused: the owner is promised a second in all."""

LAST_CALL_S = 0.2
"""For the refusals themselves, and for one kernel call that was running."""


class WorkGate:
    """Opens and closes a node's work. Calls must not overlap."""

    def __init__(
        self,
        server: ExpertServer,
        admission: Admission,
        listeners: Sequence[GatedListener],
        announcer: Announcer,
        is_open: bool = True,
        seeder: Seeder | None = None,
    ) -> None:
        """seeder: None gives no weights to anybody."""
        self._server = server
        self._seeder = seeder
        self._admission = admission
        self._listeners = listeners
        self._announcer = announcer
        self._is_open = True
        if not is_open:
            self._shut()

    @property
    def is_open(self) -> bool:
        return self._is_open

    def open(self) -> None:
        """Work again. Clients find us at their next look into the directory, within 15 s."""
        if self._is_open:
            return
        self._is_open = True
        self._server.refuse_queued(False)
        self._admission.reopen()
        self._seed(True)
        for listener in self._listeners:
            listener.resume()
        self._announcer.set_present(True)

    async def close(self) -> None:
        """Stop working; returns within a second, when nothing is computed any more (a kernel call can not be cut).

        Cancellation: the gate is closed; what waits for the kernel may still be served.
        """
        if not self._is_open:
            return
        self._shut()
        for wait_s in (PAUSE_GRACE_S, LAST_CALL_S):
            try:
                async with asyncio.timeout(wait_s):
                    await self._admission.until_idle()
                return
            except TimeoutError:
                self._server.refuse_queued(True)

    def _shut(self) -> None:
        self._is_open = False
        self._admission.drain()
        self._seed(False)
        for listener in self._listeners:
            listener.suspend(PAUSE_GRACE_S)
        self._announcer.set_present(False)

    def _seed(self, is_open: bool) -> None:
        if self._seeder is not None:
            self._seeder.set_open(is_open)
