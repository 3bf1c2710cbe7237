"""Connecting p2pd to the first peers of a swarm, by their multiaddrs, before its directory can be spoken to.

Knows no directory: who is connected here still has to answer there (`hivemind_dht.py`).
"""

import asyncio
from collections.abc import Sequence

from shoal.protocol.errors import ConnectFailed, ShoalError
from shoal.protocol.ids import PeerId
from shoal.protocol.net import p2pd_control
from shoal.protocol.net.p2pd import P2pd

DIAL_TIMEOUT_S = 5.0
"""For a bootstrap peer to be connected: 3 RTT, and time to try its other addresses."""

DIAL_GRACE_S = 0.5
"""For the other bootstrap peers once one is connected; one that is switched off would hold up every join."""


async def dial_any(p2pd: P2pd, addresses: Sequence[str]) -> list[str]:
    """Connect p2pd to all of them in parallel and return those that answered, the slow ones left out.

    Raises:
        ConnectFailed: none did, with each one's reason.
    """
    dials = {asyncio.create_task(_dial(p2pd, address)): address for address in addresses}
    pending = set(dials)
    timeout_s: float | None = None
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            if any(dial.result() is None for dial in done):
                timeout_s = DIAL_GRACE_S
    finally:
        for dial in pending:
            dial.cancel()
    reached = [address for dial, address in dials.items() if dial not in pending and dial.result() is None]
    if dials and not reached:
        reasons = "; ".join(f"{address}: {dial.result()}" for dial, address in dials.items())
        raise ConnectFailed(f"no bootstrap peer answered: {reasons}")
    return reached


async def _dial(p2pd: P2pd, address: str) -> str | None:
    """Connect p2pd to the peer at `address` and return why that failed, if it did."""
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await p2pd_control.dial(p2pd.control_path, owner_of_address(address), [address])
    except TimeoutError:
        return f"no answer within {DIAL_TIMEOUT_S:.0f} s"
    except ShoalError as error:
        return str(error)
    return None


def owner_of_address(address: str) -> PeerId:
    return PeerId(address.rpartition("/p2p/")[2])
