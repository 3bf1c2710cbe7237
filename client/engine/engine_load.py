"""What an engine is busy with: counts and bytes, for health checks, screens and metrics."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """An engine at one moment."""

    num_running: int
    num_waiting: int
    kv_bytes: int
    """Memory of the KV caches of all running streams."""
    kv_budget_bytes: int
