"""`shoal simulate recovery` for people: a table whose columns are as wide as their headings in any language."""

from collections.abc import Sequence

from shoal.client.translate import N_, _
from shoal.simulations.virtual.recovery import Recovery, Tail

FAULT_WORDS = {"kill": N_("death"), "silence": N_("silence"), "reset": N_("reset")}


def recovery_lines(results: Sequence[Recovery], tail: Tail) -> list[str]:
    """The table, and a line on slow calls."""
    heads = [_("fault"), _("runs"), _("median"), "p99", _("worst"), _("slow tokens a run")]
    rows = [_cells(each) for each in results]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    last = _(
        "one call in a hundred ten times as long: p99 / median token time {ratio:.2f} over {tokens} tokens,"
        " {hedged:.1f} % of requests hedged"
    )
    return [
        _("extra time of the worst token after a fault, in round trips:"),
        *(_line(row, widths) for row in (heads, *rows)),
        last.format(ratio=tail.p99_to_median, tokens=tail.num_tokens, hedged=100 * tail.hedges_per_request),
    ]


def _cells(result: Recovery) -> list[str]:
    figures = (result.median_rtts, result.p99_rtts, result.worst_rtts, result.num_slow_tokens)
    return [_(FAULT_WORDS[result.fault]), str(result.num_runs), *(f"{value:.2f}" for value in figures)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    right = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *right])
