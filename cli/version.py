"""`shoal version`."""

from importlib.metadata import version as installed_version

from shoal.protocol.version import PROTOCOL_VERSION


def version() -> None:
    """Print the versions of the program and of the protocol it speaks."""
    print(f"shoal {installed_version('shoal')} (protocol {PROTOCOL_VERSION})")
