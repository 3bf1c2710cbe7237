"""Say in one line what is wrong when Python is too old, instead of failing somewhere inside pip."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # this file is for the versions that can not run the others
    sys.exit("shoal needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.11" % sys.version_info[:2])  # noqa: UP031
