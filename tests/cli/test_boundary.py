"""What the system refused becomes one line about the file and, where we know it, one about what to do."""

import errno
from collections.abc import Callable

import pytest

from shoal.cli.boundary import CTRL_C_STATUS, reporting_errors
from shoal.protocol.errors import NodeNotRunning


def _raised(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _status(error: BaseException) -> object:
    with pytest.raises(SystemExit) as ended, reporting_errors():
        _raised(error)()
    return ended.value.code


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free some"),
        (errno.EDQUOT, "free some"),
        (errno.EACCES, "change the owner or the mode"),
        (errno.EMFILE, "ulimit"),
    ],
)
def test_what_the_system_refused_names_the_file_and_the_cure(number, cure, capsys):
    assert _status(OSError(number, "the system's words", "/the/file")) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "shoal: the system's words: /the/file"
    assert cure in second


def test_an_error_that_nobody_knows_a_cure_for_is_one_line(capsys):
    assert _status(OSError(errno.ENOTDIR, "Not a directory", "/a/file")) == 1
    assert capsys.readouterr().err == "shoal: Not a directory: /a/file\n"


def test_an_error_without_number_or_words_still_says_something(capsys):
    assert _status(OSError()) == 1
    assert capsys.readouterr().err == "shoal: OSError\n"


def test_an_error_of_ours_ends_with_its_own_status(capsys):
    error = NodeNotRunning("node")
    assert _status(error) == error.exit_status
    assert capsys.readouterr().err.startswith("shoal: ")


def test_ctrl_c_is_130_without_a_word(capsys):
    assert _status(KeyboardInterrupt()) == CTRL_C_STATUS
    assert capsys.readouterr().err == "\n"


def test_a_reader_who_is_gone_hears_nothing(capsys):
    assert _status(BrokenPipeError()) == 1
    assert capsys.readouterr().err == ""
