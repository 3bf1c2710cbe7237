"""SYNC over p2pd's unary calls: bytes out, bytes in, and the keeper that answers others (PROTOCOL.md §7.3).

libp2p has proven who calls and who answers. Knows no rosters and no DHT.
"""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.protocol import limits
from shoal.protocol.errors import Malformed
from shoal.protocol.ids import PeerId
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.sync_messages import SyncReply, SyncRequest, decode_reply, encode_request
from shoal.protocol.version import DIRECTORY_RPC

if TYPE_CHECKING:
    from hivemind.p2p import P2P, PeerID

MAX_PARALLEL_CALLS = 64
"""Exchanges of ours at a time."""


class SyncPort:
    """Asks others, and lets `keeper` answer them between `open` and `close`."""

    def __init__(self, p2p: "P2P", keeper: RecordKeeper, timeout_s: float) -> None:
        """timeout_s: for one exchange."""
        self._client = p2p._client
        self._keeper = keeper
        self._timeout_s = timeout_s
        self._name = f"{DIRECTORY_RPC}{keeper.seal.swarm_tag}.rpc_sync"
        self._calls = asyncio.Semaphore(MAX_PARALLEL_CALLS)
        self._is_open = False

    async def open(self) -> None:
        """Answer others from now on."""
        await self._client.add_unary_handler(self._name, self._answer)
        self._is_open = True

    async def close(self) -> None:
        """Answer nobody any more. Idempotent."""
        if self._is_open:
            self._is_open = False
            await self._client.remove_unary_handler(self._name)

    async def call(self, peer: "PeerID", request: SyncRequest) -> SyncReply | None:
        """One exchange; None: no answer in time, or none that we can read.

        Cancellation: the keeper may have acted.
        """
        from hivemind.p2p import P2PDaemonError, P2PHandlerError

        request = replace(request, word=self._keeper.seal.word(self._keeper.us, PeerId(peer.to_base58())))
        try:
            async with self._calls, asyncio.timeout(self._timeout_s):
                data = await self._client.call_unary_handler(peer, self._name, encode_request(request))
            return decode_reply(data)
        except (P2PDaemonError, P2PHandlerError, Malformed, TimeoutError):
            return None

    async def _answer(self, data: bytes, sender: "PeerID") -> bytes:
        if len(data) > limits.MAX_SYNC_BYTES:
            data = b""  # no request is so long: refused as what is none
        return self._keeper.answer(data, PeerId(sender.to_base58()))
