"""Where this machine keeps what shoal has computed and can compute again."""

from pathlib import Path

from platformdirs import user_cache_path


def default_cache_dir() -> Path:
    """The platform's cache folder for shoal, e.g. `~/.cache/shoal`; honours `XDG_CACHE_HOME`."""
    return user_cache_path("shoal")
