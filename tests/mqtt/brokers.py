"""The two brokers of the suite as processes: amqtt in an environment of its own, and Debian's mosquitto."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

HERE = Path(__file__).resolve().parent
AMQTT_PYTHON = "SHOAL_AMQTT_PYTHON"
"""Where run.py says which interpreter has amqtt."""

SYSTEM_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@dataclass(frozen=True)
class BrokerSettings:
    """What a test wants of its broker. Empty: not that."""

    port: int
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: str = ""
    password_file: str = ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_broker(kind: str, settings: BrokerSettings, directory: Path) -> Iterator[None]:
    """A broker until the end of the block; it may not be ready yet."""
    command = amqtt_command(settings) if kind == "amqtt" else mosquitto_command(settings, directory)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def amqtt_command(settings: BrokerSettings) -> list[str]:
    python = os.environ.get(AMQTT_PYTHON)
    if not python:
        pytest.skip(f"needs amqtt in an environment of its own, named by {AMQTT_PYTHON}: make test-mqtt")
    said = {name: value for name, value in asdict(settings).items() if value}
    return [python, str(HERE / "amqtt_broker.py"), json.dumps(said)]


def mosquitto_command(settings: BrokerSettings, directory: Path) -> list[str]:
    program = shutil.which("mosquitto", path=SYSTEM_PATH)
    if program is None:
        pytest.skip("needs mosquitto: apt-get install mosquitto")
    lines = [f"listener {settings.port} 127.0.0.1", f"allow_anonymous {'false' if settings.username else 'true'}"]
    if settings.certfile:
        lines += [f"certfile {settings.certfile}", f"keyfile {settings.keyfile}"]
    if settings.username:
        hasher = shutil.which("mosquitto_passwd", path=SYSTEM_PATH) or "mosquitto_passwd"
        command = [hasher, "-b", "-c", settings.password_file, settings.username, settings.password]
        subprocess.run(command, check=True, capture_output=True)
        os.chmod(settings.password_file, 0o644)  # mosquitto gives its privileges up before it reads
        lines += [f"password_file {settings.password_file}"]
    config = directory / f"mosquitto-{settings.port}.conf"
    config.write_text("\n".join(["user root" if os.geteuid() == 0 else "", *lines, ""]))
    return [program, "-c", str(config)]


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key) for 127.0.0.1, signed by itself, so that it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certfile, keyfile = directory / f"{name}.pem", directory / f"{name}.key"
    certfile.write_bytes(built.public_bytes(Encoding.PEM))
    keyfile.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    keyfile.chmod(0o600)
    return certfile, keyfile
