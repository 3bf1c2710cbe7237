"""Build the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer and run their tests on them.

The build lies in a folder of its own (build/sanitize) and takes the installed module's place in that one process, by
`SHOAL_NATIVE_PATH` in tests/conftest.py; what is installed stays as it is.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
TESTS = ("tests/kernels", "tests/experts/test_cpu_backend.py", "tests/experts/test_bad_input.py")


def main() -> None:
    """Exit with pytest's status."""
    nanobind = _output(sys.executable, "-m", "nanobind", "--cmake_dir")
    cmake = str(Path(sys.executable).parent / "cmake")
    configure = (
        cmake, "-S", str(ROOT), "-B", str(BUILD), "-DSHOAL_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dnanobind_DIR={nanobind}",
    )  # fmt: skip
    subprocess.run(configure, check=True)
    subprocess.run((cmake, "--build", str(BUILD), "--parallel"), check=True)
    libraries = [_output("c++", f"-print-file-name=lib{name}.so") for name in ("asan", "ubsan", "stdc++")]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SHOAL_NATIVE_PATH": str(next(BUILD.glob("_native*.so"))),
    }
    tests = (sys.executable, "-m", "pytest", "-q", "--timeout=900", *TESTS)
    sys.exit(subprocess.run(tests, env=environment, cwd=ROOT, check=False).returncode)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
