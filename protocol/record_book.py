"""Holder records by layer and holder: the rules of a directory that needs no network (PROTOCOL.md §7).

Sans-IO: time is an argument. Shared by the `memory` and `static` back ends; the DHT keeps its own books.
"""

from collections import defaultdict
from collections.abc import Sequence

from shoal.protocol import limits
from shoal.protocol.errors import RecordRejected
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.records import HolderRecord, decode_record


class RecordBook:
    """Verified records, the newest of each holder and layer.

    Limits: `limits.MAX_HOLDERS_PER_LAYER` live records per layer; a newcomer that finds it full is refused.
    """

    def __init__(self) -> None:
        self._layers: dict[tuple[bytes, LayerId], dict[PeerId, HolderRecord]] = defaultdict(dict)

    def add(self, data: bytes, owner: PeerId, now_s: float) -> HolderRecord:
        """Verify a signed record of `owner` and keep it in place of its older ones.

        Raises:
            RecordRejected, AuthenticationFailed: as `decode_record`; or the layer is full.
        """
        record = decode_record(data, owner, now_s)
        holders = self._layers[record.model_root, record.layer]
        known = holders.get(owner)
        if known is not None and known.seq > record.seq and known.expires_at_s > now_s:
            return known
        if known is None and len(holders) >= limits.MAX_HOLDERS_PER_LAYER:
            self._forget_expired(holders, now_s)
            if len(holders) >= limits.MAX_HOLDERS_PER_LAYER:
                raise RecordRejected(f"layer {record.layer} has {len(holders)} holders already")
        holders[owner] = record
        return record

    def lookup(self, model_root: bytes, layers: Sequence[LayerId], now_s: float) -> dict[LayerId, list[HolderRecord]]:
        """The live records of each layer, sorted by peer id."""
        found: dict[LayerId, list[HolderRecord]] = {}
        for layer in layers:
            holders = self._layers.get((model_root, layer), {})
            self._forget_expired(holders, now_s)
            found[layer] = [holders[peer] for peer in sorted(holders)]
        return found

    @staticmethod
    def _forget_expired(holders: dict[PeerId, HolderRecord], now_s: float) -> None:
        for peer in [peer for peer, record in holders.items() if record.expires_at_s <= now_s]:
            del holders[peer]
