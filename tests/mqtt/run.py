"""Telemetry against two real brokers (`make test-mqtt`): amqtt, in an environment of its own, and mosquitto.

amqtt pins a websockets of 2024 and is therefore kept away from ours. No part of `make test`: it downloads amqtt.
Run: python tests/mqtt/run.py [pytest's arguments …]
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / ".venv-mqtt"
PACKAGES = ("amqtt==0.12.1",)


def main(arguments: list[str]) -> int:
    """pytest's exit status."""
    install()
    own = {**os.environ, "SHOAL_AMQTT_PYTHON": str(ENVIRONMENT / "bin/python")}
    command = [sys.executable, "-m", "pytest", "-v", str(HERE / "telemetry_suite.py"), *arguments]
    return subprocess.run(command, env=own, cwd=ROOT, check=False).returncode


def install() -> None:
    """Make amqtt's environment, once per list of versions."""
    stamp, wanted = ENVIRONMENT / ".installed", " ".join(PACKAGES)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"installing {wanted}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([str(ENVIRONMENT / "bin/python"), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    stamp.write_text(wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
