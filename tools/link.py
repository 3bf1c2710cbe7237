"""Link the top-level folders under `.links/shoal/` so that static tools see the import package `shoal`.

An installed shoal needs none of this; mypy, import-linter and pytest from a checkout do.
The mapping is the one the wheel is built from (`[tool.scikit-build.wheel.packages]`), so it can not drift.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Make `.links/<package>` point to each mapped folder; existing links are replaced."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages: dict[str, str] = settings["tool"]["scikit-build"]["wheel"]["packages"]
    for package, folder in packages.items():
        link = ROOT / ".links" / package
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / folder, target_is_directory=True)


if __name__ == "__main__":
    main()
