"""Run `shoal demo` and draw what it printed as docs/demo.svg (part of `make screenshots`). Nothing is retouched."""

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100


def main() -> None:
    """Draw one run."""
    program = Path(sys.executable).with_name("shoal")
    done = subprocess.run([program, "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    console.print(Text(done.stdout.rstrip()))
    (ROOT / "docs" / "demo.svg").write_text(console.export_svg(title="shoal"), encoding="utf-8")


if __name__ == "__main__":
    main()
