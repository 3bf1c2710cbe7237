"""The node on this machine, as its owner's screens see it: through the control socket, never by importing a node."""

from pathlib import Path
from typing import Protocol

from shoal.protocol.control import ControlRequest, GetStatus, NodeStatus, Pause, Resume
from shoal.protocol.errors import Malformed
from shoal.protocol.net.control_socket import ask


class NodeControl(Protocol):
    """Asks one node, and tells it to pause."""

    async def status(self) -> NodeStatus:
        """Raises NodeNotRunning, and what else `control_socket.ask` raises."""

    async def pause(self, duration_s: float | None) -> NodeStatus:
        """Work for nobody; None: until `resume`. Raises as `status`."""

    async def resume(self) -> NodeStatus:
        """Raises as `status`."""


class LocalNode:
    """The node with this name whose socket is in this directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name

    async def status(self) -> NodeStatus:
        return await self._ask(GetStatus())

    async def pause(self, duration_s: float | None) -> NodeStatus:
        return await self._ask(Pause(duration_s))

    async def resume(self) -> NodeStatus:
        return await self._ask(Resume())

    async def _ask(self, request: ControlRequest) -> NodeStatus:
        reply = await ask(self._directory, self._name, request)
        if not isinstance(reply, NodeStatus):
            raise Malformed(f"the node answered with {type(reply).__name__}")
        return reply
