"""Say in one line what is wrong when Python is too old, instead of failing somewhere inside pip."""

import sys

if sys.version_info < (3, 11):
    sys.exit("shoal needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.11" % sys.version_info[:2])
