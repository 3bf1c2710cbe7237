"""Which model is meant: a checkpoint directory, or NAME@ROOT of this machine's store."""

import os
from pathlib import Path


def store_directory() -> Path:
    """Where this user's pieces are."""
    from shoal.experts.pieces.shelf import default_store_dir

    return Path(os.environ.get("SHOAL_STORE") or default_store_dir())


def model_directory(model: Path) -> Path:
    """The directory, if it is one; else the folder of the model that `shoal models ls` calls so.

    Raises:
        ModelNotFound: neither. The message names both.
    """
    from shoal.experts.pieces.shelf import Shelf
    from shoal.protocol.errors import ModelNotFound

    store = store_directory()
    if model.is_dir() or not store.is_dir() or len(model.parts) != 1:
        return model  # a directory, or something whose opening says best what is wrong
    try:
        return Shelf(store).find(str(model)).directory
    except ModelNotFound as error:
        raise ModelNotFound(f"no such model directory: {model}; and in the store: {error}") from error
