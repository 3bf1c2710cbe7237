"""A node's answers in words, one fact a line: readable by people, screen readers and grep."""

from datetime import datetime

from shoal.client.translate import N_, _
from shoal.protocol.control import (
    Coverage,
    LayerCoverage,
    LogLine,
    NodeState,
    NodeStatus,
    PauseReason,
    Peer,
    PeerRole,
    Peers,
    WeightTransfer,
)

REASONS = {
    PauseReason.USER: N_("by you"),
    PauseReason.SCHEDULE: N_("outside its hours"),
    PauseReason.INPUT: N_("somebody uses this machine"),
    PauseReason.INPUT_UNKNOWN: N_("idle_only is set and nothing says if this machine is idle; see shoal doctor"),
    PauseReason.BATTERY: N_("on battery"),
    PauseReason.TEMPERATURE: N_("too hot"),
    PauseReason.POWER: N_("draws too much power"),
    PauseReason.MONTHLY_CAP: N_("the month's transfer is used up"),
    PauseReason.METERED: N_("the connection is metered"),
    PauseReason.PROGRAM: N_("a program of pause_when runs"),
    PauseReason.LOAD: N_("other programs need the processors"),
}

STATES = {
    NodeState.STARTING: N_("starting"),
    NodeState.SERVING: N_("serving"),
    NodeState.PAUSED: N_("paused"),
    NodeState.DRAINING: N_("draining"),
}


def status_lines(status: NodeStatus) -> list[str]:
    """`shoal status`."""
    limits, none_yet = status.limits, _("(not yet)")
    month = size(status.month_bytes)
    if limits.monthly_bytes:
        month = _("{used} of {cap}").format(used=month, cap=size(limits.monthly_bytes))
    return [
        state_line(status),
        _("node:      {name}, pid {pid}, since {time}, shoal {version}").format(
            name=status.name, pid=status.pid, time=clock(status.started_at_s), version=status.version
        ),
        _("peer:      {peer}").format(peer=status.peer or none_yet),
        _("model:     {model} {root}… ({format}, {kernel} kernel)").format(
            model=status.model, root=status.model_root[:16], format=status.weight_format, kernel=status.kernel
        ),
        _("holding:   {experts} experts in {layers} layers, {size}").format(
            experts=status.num_experts, layers=len(status.holding), size=size(status.resident_bytes)
        ),
        *_disk_lines(status),
        _(
            "given:     {tokens:.1f} tokens' worth ({rows} rows, {compute_s:.2f} s of kernel) in {requests} requests"
        ).format(
            tokens=status.tokens_given,
            rows=status.rows_computed,
            compute_s=status.compute_s,
            requests=status.requests_served,
        ),
        _("refused:   {number} requests").format(number=status.requests_refused),
        _("now:       {clients} clients, {queue_ms:.0f} ms of work waiting").format(
            clients=status.num_clients, queue_ms=status.queue_s * 1000
        ),
        _("up:        {total}, {rate} now, {limit}").format(
            total=size(status.bytes_up), rate=rate(status.up_bytes_per_s), limit=limit(limits.up_bytes_per_s)
        ),
        _("down:      {total}, {rate} now, {limit}").format(
            total=size(status.bytes_down), rate=rate(status.down_bytes_per_s), limit=limit(limits.down_bytes_per_s)
        ),
        f"{status.month}:   {month}",
        *_lan_lines(status),
        *_weight_lines(status.weights),
        _("threads:   {number}").format(number=limits.threads),
    ]


def _disk_lines(status: NodeStatus) -> list[str]:
    if not status.num_cold:
        return []
    words = _("on disk:   {experts} experts more, read when nobody else has them, {read_ms} ms each")
    return [words.format(experts=status.num_cold, read_ms=status.read_ms)]


def _lan_lines(status: NodeStatus) -> list[str]:
    if not status.limits.lan_unlimited:
        return []
    up, down = size(status.lan_bytes_up), size(status.lan_bytes_down)
    return [_("lan:       {up} up, {down} down, neither limited nor counted").format(up=up, down=down)]


def _weight_lines(weights: WeightTransfer) -> list[str]:
    """What comes and what is given; nothing if that is nothing."""
    lines = []
    if weights.num_fetched < weights.num_missing:
        words = _("filling:   {done} of {total} experts, {size} of {of_size} ({peers} from peers), {rate}, {left}")
        lines.append(
            words.format(
                done=weights.num_fetched, total=weights.num_missing, size=size(weights.fetched_bytes),
                of_size=size(weights.missing_bytes), peers=size(weights.peer_bytes),
                rate=rate(weights.fetched_bytes_per_s), left=_time_left(weights.left_s),
            )
        )  # fmt: skip
    if weights.bytes_given or weights.num_takers:
        words = _("seeding:   {size} of weights given, {pieces} pieces; {takers} peers take now, {waiting} wait")
        lines.append(
            words.format(
                size=size(weights.bytes_given), pieces=weights.pieces_given, takers=weights.num_takers,
                waiting=weights.num_waiting,
            )
        )  # fmt: skip
    return lines


def _time_left(left_s: float | None) -> str:
    if left_s is None:
        return _("waiting for somebody who has them")
    return _("about {minutes} min left").format(minutes=max(1, round(left_s / 60)))


def state_line(status: NodeStatus) -> str:
    """Serving, paused (why, until when), draining or starting."""
    if status.state is not NodeState.PAUSED or status.pause_reason is None:
        return _(STATES[status.state])
    reason = _(REASONS[status.pause_reason])
    if status.paused_until_s is not None:
        return _("paused until {time}: {reason}").format(time=clock(status.paused_until_s), reason=reason)
    if status.pause_reason is PauseReason.USER:
        return _("paused until `shoal resume`: {reason}").format(reason=reason)
    return _("paused: {reason}").format(reason=reason)


def peer_lines(peers: Peers) -> list[str]:
    """`shoal peers`."""
    return [_peer_line(peer) for peer in peers.peers] or [_("no peers")]


def coverage_lines(coverage: Coverage) -> list[str]:
    """`shoal coverage`."""
    covered = 1 - coverage.num_missing / coverage.num_experts
    lines = [
        _("coverage {covered:.1%} of {experts} experts by {holders} holders").format(
            covered=covered, experts=coverage.num_experts, holders=coverage.num_holders
        ),
        _("fewest replicas: {fewest}; worst layer: {layer}").format(
            fewest=coverage.min_replicas, layer=coverage.worst_layer
        ),
    ]
    lines += _rarity_lines(coverage)
    missing = {layer.layer: layer.replicas.count(0) for layer in coverage.layers if 0 in layer.replicas}
    if missing:
        layer, count = max(missing.items(), key=lambda item: item[1])
        gap = size(count * coverage.expert_bytes)
        lines.append(_("one more node with {size} closes layer {layer}").format(size=gap, layer=layer))
    return lines + [_layer_line(layer, coverage.target_replicas) for layer in coverage.layers]


def log_line(line: LogLine) -> str:
    """`shoal logs`."""
    said = " ".join(f"{name}={value}" for name, value in line.fields.items() if value not in (None, ""))
    return f"{clock(line.at_s)} {line.level:<7} {line.event} {said}".rstrip()


def size(size_bytes: int) -> str:
    """`1.5 GB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"


def rate(bytes_per_s: float) -> str:
    """`1.5 MB/s`."""
    return f"{size(round(bytes_per_s))}/s"


def limit(bytes_per_s: int | None) -> str:
    """`at most 1.5 MB/s`."""
    return _("no limit") if bytes_per_s is None else _("at most {rate}").format(rate=rate(bytes_per_s))


def clock(at_s: float) -> str:
    """Local time, to the second."""
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M:%S")


def _peer_line(peer: Peer) -> str:
    if peer.role is PeerRole.CLIENT:
        return _("{peer} client, {connections} connections, {requests} requests served").format(
            peer=peer.peer, connections=peer.num_connections, requests=peer.requests_served
        )
    if peer.role is PeerRole.ANNOUNCED:
        return _(
            "{peer} announces itself on the LAN at {address}; no node runs here that could ask what it holds"
        ).format(peer=peer.peer, address=peer.addresses[0])
    is_ours = peer.role is PeerRole.SELF
    words = N_("{peer} holder (this node), {experts} experts in {layers} layers, {address}") if is_ours else N_(
        "{peer} holder, {experts} experts in {layers} layers, {address}"
    )  # fmt: skip
    line = _(words).format(
        peer=peer.peer, experts=peer.num_experts, layers=len(peer.holding), address=peer.addresses[0]
    )
    return line + ("; " + _("on disk: {experts}").format(experts=peer.num_cold) if peer.num_cold else "")


def _rarity_lines(coverage: Coverage) -> list[str]:
    """Below the target: how many, which first, what helps."""
    if not coverage.num_rare:
        return []
    lines = [
        _("fewer than {target} replicas: {rare} experts; coming: {coming}; only on disk: {anchored}").format(
            target=coverage.target_replicas, rare=coverage.num_rare, coming=coverage.num_coming,
            anchored=coverage.num_anchor_only,
        )
    ]  # fmt: skip
    rarest = ", ".join(f"{each.layer}:{each.expert} ({each.replicas})" for each in coverage.rarest)
    return lines + ([_("rarest, layer:expert (replicas): {rarest}").format(rarest=rarest)] if rarest else [])


def _layer_line(layer: LayerCoverage, target: int) -> str:
    """One character an expert: its holders, `.` for none, `+` for more than nine; then what is to be said of it."""
    signs = "".join("." if count == 0 else str(count) if count <= 9 else "+" for count in layer.replicas)
    said = [
        _("below {target}: {number}").format(target=target, number=layer.num_rare) if layer.num_rare else "",
        _("coming: {experts}").format(experts=layer.coming) if layer.coming else "",
        _("only on disk: {experts}").format(experts=layer.anchor_only) if layer.anchor_only else "",
    ]
    line = _("layer {layer:>3}  {signs}").format(layer=layer.layer, signs=signs)
    return "; ".join([line, *filter(None, said)])
