"""What a rehearsal found, as Markdown: one table, with machine, commit and date. Knows numbers and words."""

from collections.abc import Mapping

from shoal.simulations.rehearsal.fetching import Pulled, Twice
from shoal.simulations.rehearsal.run import Rehearsal

GB, GIB, MB = 10**9, 2**30, 10**6

LIMIT = 1.01
"""Bytes over the wire for each byte of experts, at most."""


def report(found: Rehearsal, machine: Mapping[str, str | int], commit: str, date: str) -> str:
    """The page."""
    about = f"{date}, commit {commit}, {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}"
    rows = [*_checkpoint(found), *_manifest(found), *_fetches(found), *_assignment(found)]
    table = "\n".join(f"| {what} | {figure} |" for what, figure in rows)
    return f"{about}.\n\n| what | figure |\n|---|---|\n{table}\n"


def _checkpoint(found: Rehearsal) -> list[tuple[str, str]]:
    made = found.checkpoint
    published = f"{made.num_files} files, {made.num_tensors:,} tensors, {made.size_bytes:,} bytes"
    return [
        ("the checkpoint", f"{published} ({made.size_bytes / GIB:.1f} GiB)"),
        ("what it takes on disk", f"{made.disk_bytes / MB:.0f} MB, written in {found.written_s:.1f} s"),
        (
            "index, all headers, manifest, layout",
            _sizes(made.index_bytes, made.header_bytes, found.manifest_bytes, found.layout_bytes),
        ),
    ]


def _sizes(*sizes: int) -> str:
    return " · ".join(f"{size / MB:.2f} MB" for size in sizes)


def _manifest(found: Rehearsal) -> list[tuple[str, str]]:
    hashed, whole = found.hashed, found.checkpoint.size_bytes
    rate = hashed.bytes_per_s
    read = f"{hashed.num_experts} experts, {hashed.size_bytes / GB:.1f} GB in {hashed.taken_s:.1f} s"
    alone = found.hash_bytes_per_s
    return [
        (f"manifest: read and hashed ({hashed.jobs} threads)", f"{read}: {rate / GB:.2f} GB/s"),
        ("BLAKE3 alone, one thread", f"{alone / GB:.2f} GB/s"),
        (
            "so all of it would take",
            f"{whole / rate / 60:.1f} min here; {whole / alone / 60:.1f} min of one core's hashing;"
            f" {whole / (0.5 * GB) / 60:.0f} min from a disk of 500 MB/s",
        ),
    ]


def _fetches(found: Rehearsal) -> list[tuple[str, str]]:
    share = f"{found.settings.share_bytes / GB:g} GB"
    rows = [
        (
            f"plan of a node of {share} (`pull --dry-run`)",
            f"{found.whole.num_experts} experts, {found.planned_bytes:,} bytes, in {found.plan_s:.1f} s",
        )
    ]
    rows += [(f"fetched: {_experts(each)}, then as many more", _twice(each)) for each in found.published]
    rows += [(f"the same with `shoal.layout`: {_experts(each)}", _twice(each)) for each in found.told]
    rows += [(f"fetched: {found.whole.num_experts} experts at once", _pull(found.whole))]
    rate = found.verified_bytes / found.verify_s / GB
    rows += [
        (
            "hashed again from the store",
            f"{found.verified_bytes / GB:.2f} GB, {rate:.2f} GB/s, damaged: {found.num_damaged}",
        ),
        ("one bit flipped at the hub", f"exit {found.refused.status}: {found.refused.words}"),
    ]
    return rows


def _verdict(pull: Pulled) -> str:
    return "kept" if pull.ratio <= LIMIT else f"over {LIMIT}"


def _pull(pull: Pulled) -> str:
    sizes = f"{pull.piece_bytes:,} bytes of experts, {pull.wire_bytes:,} over the wire"
    return f"{sizes}: {pull.ratio:.4f} ({_verdict(pull)}); {pull.num_requests} requests, {pull.taken_s:.1f} s"


def _experts(fetched: Twice) -> str:
    number = fetched.first.num_experts
    return f"{number} expert{'s' if number > 1 else ''}"


def _twice(fetched: Twice) -> str:
    first, second = fetched.first, fetched.second
    begun = f"{first.wire_bytes:,} bytes over the wire: {first.ratio:.4f} ({_verdict(first)})"
    return f"{begun}; then {second.wire_bytes:,}: {second.ratio:.4f} ({_verdict(second)})"


def _assignment(found: Rehearsal) -> list[tuple[str, str]]:
    swarm, churn = found.assigned, found.assigned.churn
    chosen = f"{swarm.experts_per_node} experts each, in {swarm.median_layers:g} layers (median)"
    fetched = f"{swarm.fetched_bytes / 10**12:.3f} TB in all; {swarm.median_ratio:.4f} of a node's experts (median)"
    covered = f"covered {churn.coverage_mean:.3%} (least {churn.coverage_least:.3%})"
    expert_bytes = found.whole.piece_bytes // found.whole.num_experts
    moved = f"{churn.moves_per_h:.0f} experts an hour ({churn.moves_per_h * expert_bytes / GB:.1f} GB)"
    least = churn.least_after_giving_up
    left = "no expert was given up for another" if least is None else f"what was given up had {least} holders left"
    share = found.settings.share_bytes / GB
    return [
        (f"{swarm.num_nodes} nodes of {share:g} GB choose", f"{chosen}, {swarm.mean_choice_ms:.1f} ms a choice"),
        ("holders of an expert then", f"{swarm.mean_replicas:.2f} on average, {swarm.min_replicas} at least"),
        ("what they fetch", f"{fetched}, {swarm.worst_ratio:.4f} at most"),
        (f"{swarm.hours:g} h of churn", f"{covered}, all of it {churn.complete_share:.1%} of the time"),
        ("moves", f"{moved} with {churn.joins_per_h:.1f} newcomers an hour; {left} at least"),
    ]
