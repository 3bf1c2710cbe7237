"""A node's answers in words, one fact a line: readable by people, screen readers and grep."""

from datetime import datetime

from shoal.protocol.control import Coverage, LogLine, NodeState, NodeStatus, PauseReason, Peer, PeerRole, Peers

REASONS = {
    PauseReason.USER: "by you",
    PauseReason.SCHEDULE: "outside its hours",
    PauseReason.INPUT: "somebody uses this machine",
    PauseReason.INPUT_UNKNOWN: "idle_only is set and nothing says if this machine is idle; see shoal doctor",
    PauseReason.BATTERY: "on battery",
    PauseReason.TEMPERATURE: "too hot",
    PauseReason.POWER: "draws too much power",
    PauseReason.MONTHLY_CAP: "the month's transfer is used up",
}


def status_lines(status: NodeStatus) -> list[str]:
    """`shoal status`."""
    limits = status.limits
    month = size(status.month_bytes) + (f" of {size(limits.monthly_bytes)}" if limits.monthly_bytes else "")
    return [
        state_line(status),
        f"node:      {status.name}, pid {status.pid}, since {clock(status.started_at_s)}, shoal {status.version}",
        f"peer:      {status.peer or '(not yet)'}",
        f"model:     {status.model} {status.model_root[:16]}… ({status.weight_format}, {status.kernel} kernel)",
        f"holding:   {status.num_experts} experts in {len(status.holding)} layers, {size(status.resident_bytes)}",
        f"given:     {status.tokens_given:.1f} tokens' worth ({status.rows_computed} rows,"
        f" {status.compute_s:.2f} s of kernel) in {status.requests_served} requests",
        f"refused:   {status.requests_refused} requests",
        f"now:       {status.num_clients} clients, {status.queue_s * 1000:.0f} ms of work waiting",
        f"up:        {size(status.bytes_up)}, {rate(status.up_bytes_per_s)} now, {limit(limits.up_bytes_per_s)}",
        f"down:      {size(status.bytes_down)}, {rate(status.down_bytes_per_s)} now, {limit(limits.down_bytes_per_s)}",
        f"{status.month}:   {month}",
        f"threads:   {limits.threads}",
    ]


def state_line(status: NodeStatus) -> str:
    """Serving, paused (why, until when), draining or starting."""
    if status.state is not NodeState.PAUSED or status.pause_reason is None:
        return str(status.state)
    until = f" until {clock(status.paused_until_s)}" if status.paused_until_s is not None else ""
    if status.pause_reason is PauseReason.USER and not until:
        until = " until `shoal resume`"
    return f"paused{until}: {REASONS[status.pause_reason]}"


def peer_lines(peers: Peers) -> list[str]:
    """`shoal peers`."""
    return [_peer_line(peer) for peer in peers.peers] or ["no peers"]


def coverage_lines(coverage: Coverage) -> list[str]:
    """`shoal coverage`."""
    covered = 1 - coverage.num_missing / coverage.num_experts
    lines = [
        f"coverage {covered:.1%} of {coverage.num_experts} experts by {coverage.num_holders} holders",
        f"fewest replicas: {coverage.min_replicas}; worst layer: {coverage.worst_layer}",
    ]
    missing = {layer.layer: layer.replicas.count(0) for layer in coverage.layers if 0 in layer.replicas}
    if missing:
        layer, count = max(missing.items(), key=lambda item: item[1])
        lines.append(f"one more node with {size(count * coverage.expert_bytes)} closes layer {layer}")
    return lines + [_layer_line(layer.layer, layer.replicas) for layer in coverage.layers]


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
    return "no limit" if bytes_per_s is None else f"at most {rate(bytes_per_s)}"


def clock(at_s: float) -> str:
    """Local time, to the second."""
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M:%S")


def _peer_line(peer: Peer) -> str:
    if peer.role is PeerRole.CLIENT:
        return f"{peer.peer} client, {peer.num_connections} connections, {peer.requests_served} requests served"
    us = " (this node)" if peer.role is PeerRole.SELF else ""
    return f"{peer.peer} holder{us}, {peer.num_experts} experts in {len(peer.holding)} layers, {peer.addresses[0]}"


def _layer_line(layer: int, replicas: tuple[int, ...]) -> str:
    """One character an expert: its holders, `.` for none, `+` for more than nine."""
    signs = "".join("." if count == 0 else str(count) if count <= 9 else "+" for count in replicas)
    return f"layer {layer:>3}  {signs}"
