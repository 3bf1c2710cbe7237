"""What shells and terminals get: completion in bash, zsh and fish, and no colours for who wants none."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
ASKED = {
    "bash": {"_SHOAL_COMPLETE": "complete_bash", "COMP_WORDS": "shoal sta", "COMP_CWORD": "1"},
    "zsh": {"_SHOAL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "shoal sta"},
    "fish": {
        "_SHOAL_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_ARGS": "shoal sta",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    },
}
"""What each shell's script puts into the environment after `shoal sta` and a tab."""


def shoal(arguments: list[str], environment: Mapping[str, str]) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "LANGUAGE")}
    command = [sys.executable, "-m", "shoal.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**kept, "LC_ALL": "C.UTF-8", **environment}
    ).stdout


@pytest.mark.parametrize("shell", ASKED)
def test_a_verb_is_completed(shell: str) -> None:
    said = shoal([], ASKED[shell])
    assert "status" in said
    assert "pause" not in said


@pytest.mark.parametrize("shell", ASKED)
def test_the_script_of_a_shell_can_be_had(shell: str) -> None:
    assert f"complete_{shell}" in shoal([], {"_SHOAL_COMPLETE": f"source_{shell}"})


def test_bash_itself_completes_with_the_script() -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = shoal([], {"_SHOAL_COMPLETE": "source_bash"})
    program = f'shoal() {{ "{sys.executable}" -m shoal.cli "$@"; }}\n{script}\n'
    # the script calls `env ... $1`, which runs programs only: name the module's interpreter through a function of env
    program += f'env() {{ command env "${{@:1:$#-1}}" "{sys.executable}" -m shoal.cli; }}\n'
    program += 'COMP_WORDS=(shoal sta); COMP_CWORD=1; _shoal_completion shoal; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["status"], done.stderr


@pytest.mark.parametrize("wish", [{"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {}], ids=str)
def test_help_has_no_colours_and_fits_every_code_page(wish: dict[str, str]) -> None:
    said = shoal(["--help"], {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "LANGUAGE": "en", **wish})
    assert not COLOUR.search(said)
    assert said.isascii()


def test_language_does_not_change_what_is_completed() -> None:
    assert "status" in shoal([], {**ASKED["bash"], "LC_ALL": "sw_KE.UTF-8"})
