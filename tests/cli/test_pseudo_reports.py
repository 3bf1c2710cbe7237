"""The tables of doctor and simulate in a pseudo-locale: no word of ours escapes translation, no column bursts.

Run: pytest tests/cli/test_pseudo_reports.py
"""

import re
from dataclasses import replace

import pytest

from shoal.cli.doctor import LABELS, report
from shoal.cli.recovery_report import FAULT_WORDS, recovery_lines
from shoal.cli.simulate import seeds_lines
from shoal.node.doctor import CHECKS, examine
from shoal.simulations.virtual.ledger import SoakResult
from shoal.simulations.virtual.recovery import FAULTS, Recovery, Tail
from tests.client.tui.test_pseudo_locale import pseudo_locale  # noqa: F401  (a fixture)
from tests.node.test_doctor import FAULTS as DOCTORS_FAULTS
from tests.node.test_doctor import HEALTHY

SAME_EVERYWHERE = {"LAN", "torch", "libp2p", "GPU", "TCP", "p99"}
WORD = re.compile(r"[^\W\d_]{4,}")


def plain_words(line: str) -> list[str]:
    """Words without an accent of the pseudo-locale, which puts one on every vowel."""
    return [word for word in WORD.findall(line) if word.isascii() and word not in SAME_EVERYWHERE]


@pytest.mark.usefixtures("pseudo_locale")
@pytest.mark.parametrize("fault", [{}, *(change for change, *_ in DOCTORS_FAULTS)], ids=str)
def test_nothing_that_the_doctor_says_escapes_translation_and_its_columns_stand(fault: dict[str, object]) -> None:
    outcomes = examine(replace(HEALTHY, **fault))  # type: ignore[arg-type]
    values = " ".join(str(value) for outcome in outcomes for value in outcome.said.values.values())
    lines = [line for line in report(outcomes) if not line.startswith(" ")]  # what to try is a command
    assert len(lines) == len(CHECKS)
    escaped = [word for line in lines for word in plain_words(line) if word not in values and "`" not in line]
    assert escaped == []
    starts = {line.index(found) for line, found in zip(lines, (_found(outcome) for outcome in outcomes), strict=True)}
    assert len(starts) == 1, "the third column begins in one place"


def _found(outcome: object) -> str:
    from shoal.client.translate import _

    said = outcome.said  # type: ignore[attr-defined]
    return _(said.words).format(**said.values)


def test_every_check_has_a_label_and_every_fault_a_word() -> None:
    assert set(LABELS) == {check(HEALTHY).check for check in CHECKS}
    assert set(FAULT_WORDS) == set(FAULTS)


@pytest.mark.usefixtures("pseudo_locale")
def test_the_tables_of_simulate_are_translated_and_their_columns_stand() -> None:
    results = [Recovery(fault, 50, 1.0, 2.0, 30.25, 0.5) for fault in FAULTS]
    heading, *table, last = recovery_lines(results, Tail(2000, 1.5, 0.03))
    assert len({len(line) for line in table}) == 1, "columns of one width"
    assert [word for line in (heading, *table, last) for word in plain_words(line)] == []
    assert [word for line in seeds_lines(SoakResult(10, 20, 30, ())) for word in plain_words(line)] == []
