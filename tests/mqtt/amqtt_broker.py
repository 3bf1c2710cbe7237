"""An amqtt broker on loopback, for its own environment; no file of ours is imported (see run.py).

python amqtt_broker.py SETTINGS: JSON with port, and certfile and keyfile, or username, password and password_file, if
wanted. Prints a line when it listens, and ends with SIGTERM.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

from amqtt.broker import Broker
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher


def config(settings: dict[str, str]) -> dict[str, object]:
    """As amqtt wants it; writes the password file."""
    listener: dict[str, object] = {"type": "tcp", "bind": f"127.0.0.1:{settings['port']}"}
    if "certfile" in settings:
        listener |= {"ssl": True, "certfile": settings["certfile"], "keyfile": settings["keyfile"]}
    plugins: dict[str, object] = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    if "username" in settings:
        hashed = PasswordHash((Argon2Hasher(),)).hash(settings["password"])
        Path(settings["password_file"]).write_text(f"{settings['username']}:{hashed}\n")
        plugins = {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": settings["password_file"]}}
    return {"listeners": {"default": listener}, "plugins": plugins}


async def main(wanted: dict[str, object]) -> None:
    """Listen until SIGTERM."""
    broker, ended = Broker(wanted), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await broker.start()
    print("listening", flush=True)
    await ended.wait()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main(config(json.loads(sys.argv[1]))))
