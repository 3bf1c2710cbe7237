"""Puts measured figures into the card: everything between the two marks of README.md.

`python -m shoal.simulations.demo_model.card` measures the shipped checkpoint (some minutes on two cores), reads
the log of the run that made it (`training_log.jsonl`: what `train` printed) and rewrites that part of the README, so
that no figure there was typed by hand.
"""

import argparse
import json
from pathlib import Path

from shoal.simulations.demo_model.evaluate import MODEL_DIR, NGRAM_ORDER, SAMPLE_TOKENS, Figures, measure

HERE = Path(__file__).parent
README = HERE / "README.md"
TRAINING_LOG = HERE / "training_log.jsonl"
BEGIN, END = "<!-- figures: written by card.py -->\n", "<!-- end of figures -->\n"

NUM_LANGUAGES = 10
"""Story languages in the table, by held-out bytes; those one can ask in are added."""

LANGUAGES = {
    "af": "Afrikaans", "en": "English", "es": "Spanish", "fr": "French", "lg": "Luganda", "lgg": "Lugbara",
    "lwg": "Wanga", "mas": "Maasai", "myx": "Masaaba", "nuj": "Nyole", "pt": "Portuguese", "sw": "Swahili",
    "zu": "isiZulu",
}  # fmt: skip


def figures_section(figures: Figures, log: list[dict[str, object]]) -> str:
    """The generated part of the card, marks included."""
    parts = (_run(log), _bits(figures), _router_and_mtp(figures), _samples(figures))
    return BEGIN + "\n" + "\n".join(parts) + "\n" + END


def with_section(readme: str, section: str) -> str:
    """`readme` with its generated part replaced; raises `ValueError` when a mark is missing."""
    begin, end = readme.index(BEGIN), readme.index(END) + len(END)
    return readme[:begin] + section + readme[end:]


def _run(log: list[dict[str, object]]) -> str:
    """One table row per run in the log; a run begins with the line that holds its settings."""
    starts = [number for number, line in enumerate(log) if "seed" in line]
    runs = [(log[start], log[end - 1]) for start, end in zip(starts, [*starts[1:], len(log)], strict=True)]
    lines = "".join(_run_row(number, *run) for number, run in enumerate(runs, start=1))
    return f"""### How it was trained

| Run | Steps | Tokens read | Minutes | Device | Threads | torch | Seed | Peak rate | Weight decay | Dropout |
|---:|---:|---:|---:|---|---:|---|---:|---:|---:|---:|
{lines}
Each run after the first continues the one before (`--continue-from`). A step reads {log[0]["tokens_per_step"]} tokens.
"""


def _run_row(number: int, settings: dict[str, object], last: dict[str, object]) -> str:
    names = ("device", "threads", "torch", "seed", "peak_rate", "weight_decay", "dropout")
    cells = [number, last["step"], f"{last['tokens']:,}", last["minutes"], *(settings[name] for name in names)]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def _bits(figures: Figures) -> str:
    lines = "".join(_bits_row(group, figures) for group in _table_groups(figures))
    return f"""### Held-out bits per byte

Lower is better. The baseline is a byte {NGRAM_ORDER}-gram model (interpolated Kneser-Ney) trained on the same training
split; {NGRAM_ORDER} is its best order of 5 to 8 on this very text.

| Text | Held-out bytes | This model | {NGRAM_ORDER}-gram | Ratio |
|---|---:|---:|---:|---:|
{lines}"""


def _table_groups(figures: Figures) -> list[str]:
    stories = [g for g in figures.held_out_bytes if g.startswith("story: ") and g != "story: all"]
    asked_in = [f"story: {language}" for language in ("en", "es", "pt", "fr", "sw")]
    chosen = set(stories[:NUM_LANGUAGES]) | set(asked_in)
    ordered = [g for g in stories if g in chosen]
    return ["all", "story: all", *ordered, "book: es", "book: pt"]


def _bits_row(group: str, figures: Figures) -> str:
    kind, _, language = group.partition(": ")
    name = {"all": "everything", "story: all": "stories, all languages"}
    label = name.get(group, f"{'stories' if kind == 'story' else 'books'}, {LANGUAGES.get(language, language)}")
    ours, theirs = figures.network_bits_per_byte[group], figures.ngram_bits_per_byte[group]
    return f"| {label} | {figures.held_out_bytes[group]:,} | **{ours:.3f}** | {theirs:.3f} | {ours / theirs:.2f} |\n"


def _router_and_mtp(figures: Figures) -> str:
    balance = ", ".join(f"{ratio:.2f}" for ratio in figures.router_max_over_mean)
    return f"""### Router balance and MTP

Busiest expert over mean load on all held-out text, routed layers in order, the MTP layer last: {balance}
(8.00 would be collapse, 1.00 is perfect).

MTP drafts that the main model accepts, greedy, one draft a step: {figures.mtp_acceptance_held_out:.1%} on held-out
text, {figures.mtp_acceptance_own_text:.1%} on the model's own continuations.
"""


def _samples(figures: Figures) -> str:
    head = f"""### Samples

Unedited; one try each, at most {SAMPLE_TOKENS} tokens, temperature 0.7, top-p 0.9, a fixed seed.
"""
    return head + "".join(f"\n> **{request}**\n>\n{_quoted(text)}" for request, text in figures.samples.items())


def _quoted(text: str) -> str:
    return "".join(f"> {line}".rstrip() + "\n" for line in text.strip().split("\n"))


def main() -> None:
    """Measure (unless figures are given), and rewrite the README's generated part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figures", type=Path, help="what `evaluate` printed, instead of measuring again")
    given = parser.parse_args().figures
    figures = Figures(**json.loads(given.read_text(encoding="utf-8"))) if given else measure(MODEL_DIR)
    log = [json.loads(line) for line in TRAINING_LOG.read_text(encoding="utf-8").splitlines()]
    section = figures_section(figures, log)
    README.write_text(with_section(README.read_text(encoding="utf-8"), section), encoding="utf-8")


if __name__ == "__main__":
    main()
