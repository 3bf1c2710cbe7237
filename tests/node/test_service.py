"""The service files: systemd and the property list parser accept them, and odd paths stay one word."""

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.node.service import launchd_plist, node_command, service_name, systemd_unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (apt-get install systemd)")
@pytest.mark.parametrize("name", ["node", "attic"])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    unit = tmp_path / f"{service_name(name)}.service"
    unit.write_text(systemd_unit(node_command(sys.executable, name), name))
    command = ["systemd-analyze", "verify", "--user", "--man=no", str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_path_with_signs_that_systemd_reads_stays_what_it_is() -> None:
    unit = systemd_unit(['/home/ana maria/100%/$HOME/py"thon', "-m", "shoal.cli"], "node")
    assert 'ExecStart="/home/ana maria/100%%/$$HOME/py\\"thon" -m shoal.cli\n' in unit


def test_the_unit_waits_drains_and_yields() -> None:
    unit = systemd_unit(["python"], "node")
    for line in ("Type=notify", "TimeoutStartSec=infinity", "Restart=on-failure", "Nice=19", "NoNewPrivileges=yes"):
        assert f"\n{line}\n" in unit


def test_the_launchd_agent_is_a_property_list_that_restarts_after_a_crash_only() -> None:
    agent = plistlib.loads(launchd_plist(node_command("/usr/bin/python3", "attic"), "attic", Path("/tmp/logs")))
    assert agent["Label"] == "org.shoal.node.attic"
    assert agent["ProgramArguments"] == ["/usr/bin/python3", "-m", "shoal.cli", "node", "--name", "attic"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["LowPriorityIO"] is True
