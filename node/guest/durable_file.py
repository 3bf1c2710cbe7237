"""A small file that is replaced whole or not at all, and is there after a power cut."""

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` held; its directory is made if need be. Blocking.

    Raises:
        OSError: the disk is full, or may not be written; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
