"""Fail when the C++ kernels are missing on a machine that could have built them (part of `make check`).

Installation falls back to the reference kernels where there is no compiler, so that a broken build would go unnoticed.
"""

import shutil
import sys

from shoal.kernels import cpu

COMPILERS = ("c++", "g++", "clang++")


def main() -> None:
    """Exit with a message when a compiler is there and the extension is not."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if cpu.is_available():
        print(f"C++ kernels: {', '.join(cpu.available_isas())}")
    elif compiler:
        sys.exit(
            f"{compiler} is there, and the C++ kernels were not built: pip install --verbose --editable . says why"
        )
    else:
        print("C++ kernels: none, and no compiler to build them")


if __name__ == "__main__":
    main()
