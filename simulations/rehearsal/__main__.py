"""`python -m shoal.simulations.rehearsal`: the rehearsal at full size; prints its table, and writes it where asked."""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.rehearsal.report import report
from shoal.simulations.rehearsal.run import RehearsalSettings, rehearse
from shoal.simulations.scratch import scratch_directory

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def main() -> int:
    """Run it; `--into FILE` puts the table between that page's two marks."""
    parser = argparse.ArgumentParser(description="DeepSeek-V3.1 at its true size, without its weights.")
    parser.add_argument("--into", type=Path, help="a page to write the table into")
    parser.add_argument("--share", type=float, default=8.0, help="GB that each node gives")
    parser.add_argument("--hours", type=float, default=24.0, help="of churn")
    given = parser.parse_args()
    settings = RehearsalSettings(share_bytes=int(given.share * 1e9), hours=given.hours)
    with scratch_directory() as scratch:
        found = asyncio.run(rehearse(settings, scratch, dict(os.environ)))
    date = time.strftime("%Y-%m-%d", time.gmtime())
    table = report(found, describe_machine(), git_commit(), date)
    print(table)
    if given.into is not None:
        put_table(given.into, table)
    return 0


def put_table(page: Path, table: str) -> None:
    """Replace what is between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
