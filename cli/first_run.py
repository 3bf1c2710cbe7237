"""The first `shoal node`: at most four questions, each with a default that was measured or is harmless.

Asked once, on a terminal only, and kept in the settings file. Elsewhere, and with `--yes`, the defaults are taken and
said. Knows nothing of nodes.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import typer

from shoal.cli.options import parse_size
from shoal.cli.settings_file import read_document, settings_path, write_node_table
from shoal.client.translate import _
from shoal.node.guest.schedule import parse_schedule
from shoal.node.guest.sensors import idle_seconds, run_program

GIVEN_SHARE = 0.5
"""Of the memory that is free now: a guest takes half."""

NIGHT = "22:00-06:00"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the owner allows. None: no limit."""

    share_bytes: int
    up_bytes_per_s: int | None = None
    monthly_bytes: int | None = None
    idle_only: bool = False
    schedule: str = ""

    def sentence(self) -> str:
        """One line for people."""
        up = f"{self.up_bytes_per_s / 1e6:g} MB/s" if self.up_bytes_per_s else _("unlimited")
        month = _("no monthly cap")
        if self.monthly_bytes:
            month = _("{size:g} GB a month").format(size=self.monthly_bytes / 1e9)
        when = _("while nobody uses the machine") if self.idle_only else self.schedule or _("always, at low priority")
        words = _("memory {size:.1f} GB, upload {up}, {month}, {when}")
        return words.format(size=self.share_bytes / 1e9, up=up, month=month, when=when)


def first_run(is_yes: bool, is_share_given: bool) -> None:
    """Unless the settings file has `[node]`: ask on a terminal, say the defaults elsewhere, keep what was answered.

    Raises:
        InvalidRequest, typer.BadParameter: an answer that can not be understood; nothing is kept.
    """
    if "node" in read_document(settings_path()):
        return
    answers = measured_defaults()
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if not is_yes and is_terminal:
        print(_("The first node on this machine. Four questions; Enter takes what is in brackets."), file=sys.stderr)
        answers = ask(answers, prompt_on_terminal, can_see_input=idle_seconds(0.0, run_program) is not None)
    if is_yes or is_terminal:
        _keep(answers)
    elif not is_share_given:
        words = _("limits: {limits} (defaults; nobody to ask)").format(limits=answers.sentence())
        print(f"shoal: {words}", file=sys.stderr)


def measured_defaults() -> Answers:
    """Half of the free memory; no limits that can not be measured without asking a stranger on the internet."""
    return Answers(share_bytes=int(psutil.virtual_memory().available * GIVEN_SHARE))


def ask(defaults: Answers, prompt: Callable[[str, str], str], can_see_input: bool) -> Answers:
    """Put the questions. prompt: (question, default in words) to an answer. can_see_input: whether idleness is known.

    Raises:
        typer.BadParameter: an answer that is no size.
    """
    whens = _("always, night or times like 18:00-08:00") if not can_see_input else (
        _("always, idle (nobody at keyboard or mouse), night or times like 18:00-08:00")
    )  # fmt: skip
    share = prompt(_("How much memory may it take?"), f"{defaults.share_bytes / 1e9:.1f}GB")
    up = prompt(_("How much may it upload per second? (e.g. 500KB; none: no limit)"), "none")
    month = prompt(_("And per month, both ways? (e.g. 100GB; none: no cap)"), "none")
    when = prompt(_("When may it work? ({choices})").format(choices=whens), "always").strip().lower()
    return Answers(
        share_bytes=parse_size(share) or 0,
        up_bytes_per_s=_limit(up),
        monthly_bytes=_limit(month),
        idle_only=when == "idle",
        schedule={"always": "", "idle": "", "night": NIGHT}.get(when, when),
    )


def _limit(words: str) -> int | None:
    return None if words.strip().lower() in ("", "none", "0") else parse_size(words)


def prompt_on_terminal(question: str, default: str) -> str:
    """typer's prompt; on stderr, because stdout may be read by a program."""
    return str(typer.prompt(question, default=default, err=True))


def _keep(answers: Answers) -> None:
    parse_schedule(answers.schedule)  # refuses what is no time before it becomes a file
    guest = {
        "up_bytes_per_s": answers.up_bytes_per_s, "monthly_bytes": answers.monthly_bytes,
        "idle_only": answers.idle_only, "schedule": answers.schedule,
    }  # fmt: skip
    write_node_table(settings_path(), {"share_bytes": answers.share_bytes}, guest)
    print(_("limits: {limits}").format(limits=answers.sentence()), file=sys.stderr)
    print(_("kept in {path}").format(path=settings_path()), file=sys.stderr)
