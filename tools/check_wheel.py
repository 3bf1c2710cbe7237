"""Build the wheel and look inside: everything the program needs, nothing that strays (part of `make check`)."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from shoal.kernels import cpu

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "kernels", "experts", "node", "client", "simulations", "cli")
MUST_HAVE = (
    *(f"shoal/{package}/__init__.py" for package in PACKAGES),
    *(f"shoal/{package}/py.typed" for package in PACKAGES),
    "shoal/protocol/net/direct.py",
    "shoal/client/text/tokenizer.py",
    "shoal/client/trunk/model.py",
    *(f"shoal/client/locale/{language}.po" for language in ("es", "fr", "pt_BR", "sw")),
    "shoal/client/tui/shoal.tcss",
    "shoal/client/tui/web_page/app_index.html",
    "shoal/simulations/demo_model/model/config.json",
    "shoal/simulations/demo_model/model/tokenizer.json",
    "shoal/simulations/demo_model/ATTRIBUTION.md",
    "shoal/simulations/forecast/calibration.json",
    "shoal/simulations/demo_model/held_out_en.jsonl.gz",
)
NATIVE_SUFFIX = ".so"
TRAINING_TEXTS = "shoal/simulations/demo_model/text/"
"""Only whoever trains the demonstration model again needs them."""

MAX_WHEEL_BYTES = 20 * 1024 * 1024
"""The demonstration model is most of it and has at most 16 MiB."""


def main() -> None:
    """Exit with a message when the wheel is not what it should be."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            sys.exit(f"the wheel does not build:\n{built.stdout[-2000:]}{built.stderr[-2000:]}")
        (wheel,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        problems = [f"missing: {name}" for name in MUST_HAVE if name not in names]
        if cpu.is_available() and not any(name.endswith(NATIVE_SUFFIX) for name in names):
            problems.append("missing: the C++ kernels, which this machine can build")
        problems += [f"stray: {name}" for name in names if not _belongs(name)]
        if wheel.stat().st_size > MAX_WHEEL_BYTES:
            problems.append(f"too large: {wheel.stat().st_size} bytes")
        if problems:
            sys.exit("\n".join(problems))
        print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, nothing missing, nothing stray")


def _belongs(name: str) -> bool:
    if name.startswith("shoal-") and ".dist-info/" in name:
        return True
    parts = name.split("/")
    is_ours = parts[0] == "shoal" and parts[1] in PACKAGES and "__pycache__" not in parts
    return is_ours and not name.startswith(TRAINING_TEXTS)


if __name__ == "__main__":
    main()
