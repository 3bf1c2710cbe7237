"""How hivemind comes into the process: late, quiet, and without the parts for training that we do not use.

`import hivemind` runs an `__init__` that pulls averaging, optimizers and MoE layers, with scipy and grpc: 0.3 s and
60 MB beyond torch. Its `p2p` and `dht` packages need none of that (0.07 s), so the package is registered without
running `__init__`; the first use of one of its own names runs it then. Knows nothing of daemons and directories.
"""

import asyncio
import importlib.util
import logging
import sys
from types import ModuleType

from shoal.protocol.errors import InvalidRequest

PACKAGE = "hivemind"

_NEEDED = ("hivemind.p2p.p2p_daemon", "hivemind.dht.node")


def load_hivemind() -> None:
    """Import what we use of hivemind and silence it. Idempotent; 0.1 s, and 0.8 s more without torch.

    hivemind puts a handler for its INFO messages on stderr at import. We take it away: its messages go to the root
    logger if the logger `shoal` is at DEBUG, and nowhere otherwise.

    Raises:
        InvalidRequest: hivemind is not installed (its wheels exist for Linux and macOS only).
    """
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = _light_package()
    for name in _NEEDED:
        importlib.import_module(name)
    _silence()


async def load_hivemind_in_thread() -> None:
    """`load_hivemind` without holding up the loop."""
    if not all(name in sys.modules for name in _NEEDED):
        await asyncio.to_thread(load_hivemind)
    _silence()


def _light_package() -> ModuleType:
    """The package `hivemind` with its path but without its names; the first use of a name runs the real `__init__`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.loader is None:
        raise InvalidRequest("hivemind is not installed, and libp2p and the DHT need it; try: pip install hivemind")
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def load(name: str) -> object:
        submodule = sys.modules.get(f"{PACKAGE}.{name}")
        if submodule is not None:  # `import hivemind.p2p.x as y`, while hivemind.p2p is being imported
            return submodule
        if name.startswith("__"):
            raise AttributeError(name)
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = load
    return package


def _silence() -> None:
    """Runs at every start of ours: the level of `shoal` may have changed since the import."""
    from hivemind.utils.logging import use_hivemind_log_handler

    use_hivemind_log_handler("nowhere")
    logging.addLevelName(logging.WARNING, "WARNING")  # hivemind renames it to WARN for the whole process
    logger = logging.getLogger(PACKAGE)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # without a handler, Python prints warnings on stderr
    logger.propagate = logging.getLogger("shoal").isEnabledFor(logging.DEBUG)
