"""Durations, sizes and shares as short text and as bars that differ in sign as well as in colour. Pure."""

from collections.abc import Sequence

BLOCKS = "▏▎▍▌▋▊▉█"
SPARKS = "▁▂▃▄▅▆▇█"


def milliseconds(seconds: float) -> str:
    """Four characters or so: `0.42 ms`, `12.3 ms`, `1.20 s`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    value = 1000 * seconds
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def size(num_bytes: float) -> str:
    """`812 B`, `1.2 kB`, `44 MB`, `12.0 GB`; powers of ten, as disks and links are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit in ("B", "kB") or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def bar(share: float, width: int, full: str = "█", empty: str = "─") -> str:
    """A share (0..1) as `width` characters."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return full * filled + empty * (width - filled)


def split(seconds: Sequence[float], whole: float, width: int) -> list[int]:
    """Characters for each part of a bar of which `whole` would fill `width`; they add up to the rounded sum.

    Cumulative rounding: parts too small to see are not seen, and the end of the bar is right.
    """
    if whole <= 0:
        return [0] * len(seconds)
    widths, end, drawn = [], 0.0, 0
    for part in seconds:
        end += part
        target = min(width, round(end / whole * width))
        widths.append(target - drawn)
        drawn = target
    return widths


def sparkline(values: Sequence[float], width: int) -> str:
    """The latest `width` values as one line; the highest is full."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return SPARKS[0] * len(shown)
    return "".join(SPARKS[min(len(SPARKS) - 1, int(value / top * len(SPARKS)))] for value in shown)


def short(peer: str) -> str:
    """The end of a peer id: all begin alike (`12D3Koo…`)."""
    return peer[-8:]
