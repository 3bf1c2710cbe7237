"""A private swarm from its token alone, between real processes: members fill and answer as the oracle, strangers who
ask at every door get nothing, a revoked member's node is left, and the founder is killed. Run: make test-private
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from shoal.client import Sampling, SwarmSettings
from shoal.client.blocking import BlockingSwarm
from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.protocol.errors import ConnectFailed, ShoalError
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.handshake import ClientHandshake
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.invite import Invite, decode_invite, encode_invite
from shoal.protocol.membership import Founder
from shoal.protocol.messages import Fetch, Lane, Message
from shoal.protocol.net.certificate import client_context
from shoal.protocol.net.dht_dialing import dial_any
from shoal.protocol.net.direct import open_stream, parse_address
from shoal.protocol.net.hivemind_dht import join_dht
from shoal.protocol.net.hivemind_loader import load_hivemind
from shoal.protocol.net.libp2p import Libp2pConnector
from shoal.protocol.net.p2pd import start_p2pd
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.sync_messages import Status, SyncReply, SyncRequest, decode_reply, encode_request
from shoal.protocol.version import DIRECTORY_RPC
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.node_process import node_process
from tests.swarm.test_processes import PROMPT_IDS, environment, oracle_tokens, shoal, write_settings  # noqa: F401
from tests.swarm.test_seeding_processes import LONG_S, wait_until_filled
from tests.swarm.token_suite import empty_disk, wait_until_all_is_kept

pytestmark = [pytest.mark.socket, pytest.mark.timeout(1800)]

NUM_TOKENS = 16
STRANGER = Identity.from_seed(b"\x07" * 32)
OTHER_SWARM = Founder(b"G" * 32).member(b"1" * 16)
PATIENCE_S = 60.0

Environment = dict[str, str]


class Doors(NamedTuple):
    """Where a node can be asked. `token`: a member's, for what a stranger is told by libp2p or may have guessed."""

    peer: PeerId
    direct: tuple[str, ...]
    libp2p: tuple[str, ...]
    token: Invite


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=31)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    return tmp_path / "model"


def invited(founder: Environment, label: str) -> str:
    done = shoal(founder, "invite", "--label", label)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def member(founder: Environment, tmp_path: Path, name: str) -> Environment:
    """A friend with an empty disk who has pasted a token and has nothing else."""
    own = empty_disk(founder, tmp_path, name) | {"XDG_CONFIG_HOME": str(tmp_path / name / "config")}
    write_settings(tmp_path / name / "config" / "shoal" / "shoal.toml")
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "join"], env=own, input=invited(founder, name), capture_output=True,
        text=True, timeout=LONG_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return own


def run_words(*words: str) -> tuple[str, ...]:
    return ("run", "--prompt-ids", ",".join(map(str, PROMPT_IDS)), "--max-tokens", str(NUM_TOKENS), "--json", *words)


def answer(own: Environment) -> list[int]:
    """What a member gets, who tries again as long as the swarm does not answer (1) or lacks something (4, 7)."""
    end, tries = time.monotonic() + LONG_S, [done := shoal(own, *run_words())]
    while done.returncode in (1, 4, 7) and time.monotonic() < end:
        tries.append(done := shoal(own, *run_words()))
    assert done.returncode == 0, [(each.returncode, each.stderr) for each in tries]
    found: list[int] = json.loads(done.stdout)["token_ids"]
    return found


def peers(own: Environment, name: str) -> dict[str, dict[str, object]]:
    done = shoal(own, "peers", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    return {each["peer"]: each for each in json.loads(done.stdout)["peers"]}


def own_peer(own: Environment, name: str) -> str:
    return str(json.loads(shoal(own, "status", "--name", name, "--json").stdout)["peer"])


def wait_until_left(own: Environment, name: str, peer: str) -> None:
    """Until a node sees no holder of this id in the directory."""
    end = time.monotonic() + LONG_S
    while peers(own, name).get(peer, {}).get("role") == "holder":
        assert time.monotonic() < end, f"{name} still knows it"


def wait_for_holders(swarm: BlockingSwarm, num_holders: int) -> None:
    """The client looks into the directory every 15 s."""
    end = time.monotonic() + LONG_S
    while (found := {count for layer in swarm.coverage().values() for count in layer.values()}) != {num_holders}:
        assert time.monotonic() < end, found
        time.sleep(0.2)


def doors_of(own: Environment, name: str, token: str) -> Doors:
    (ours,) = (each for each in peers(own, name).values() if each["role"] == "self")
    addresses, invite = ours["addresses"], decode_invite(token)
    assert isinstance(addresses, list)
    direct = tuple(address for address in addresses if parse_address(address))
    assert direct
    return Doors(PeerId(str(ours["peer"])), direct, invite.bootstrap, invite)


async def told_after(doors: Doors, *said: Message | ClientHandshake) -> bytes:
    """All that a node says on TLS after its challenge, to a stranger who says this."""
    endpoint = parse_address(doors.direct[0])
    assert endpoint is not None
    reader, writer = await open_stream(client_context(), doors.peer, *endpoint)
    try:
        async with asyncio.timeout(PATIENCE_S):
            decoder, frames = FrameDecoder(), list[object]()
            while not frames:
                frames = list(decoder.feed(data := await reader.read(4096)))
                assert data, "it closed before its challenge"
            (challenge,) = frames
            for each in said:
                message = each.answer(challenge.message) if isinstance(each, ClientHandshake) else each  # type: ignore[attr-defined]
                writer.write(encode_frame(0 if isinstance(each, ClientHandshake) else 1, message))
            with suppress(ConnectionError):
                return await reader.read()
            return b""
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def asked_directly(doors: Doors) -> list[bytes]:
    """HELLO, another swarm's MEMBERHELLO, and a request for the small files without either."""
    hellos = [
        ClientHandshake(STRANGER, doors.peer, b"n" * 32, b"s" * 16, Lane.BULK, swarm) for swarm in (None, OTHER_SWARM)
    ]
    files = doors.token.files
    assert files is not None
    fetch = Fetch(doors.token.model_root, files, 0, 1024, 20_000)
    return [await told_after(doors, *said) for said in ((hellos[0],), (hellos[0], fetch), (hellos[1], fetch), (fetch,))]


async def asked_by_libp2p(doors: Doors) -> list[object]:
    """The directory's call, by its name and with the roster's; the directory as whole; the experts' stream."""
    assert doors.token.membership is not None
    load_hivemind()
    from hivemind.p2p import PeerID

    seal, told = RecordSeal(doors.token.membership.directory_secret), list[object]()
    daemon = await start_p2pd(STRANGER)
    try:
        assert await dial_any(daemon, doors.libp2p)
        request = SyncRequest(seal.name(doors.token.model_root), is_summary_wanted=True)
        for word in (b"", RecordSeal(b"e" * 32).word(STRANGER.peer, doors.peer)):
            name, data = f"{DIRECTORY_RPC}{seal.swarm_tag}.rpc_sync", encode_request(replace(request, word=word))
            reply = await daemon.p2p._client.call_unary_handler(PeerID.from_base58(doors.peer), name, data)
            told.append(decode_reply(reply))
        for swarm in (None, OTHER_SWARM):
            with pytest.raises(ConnectFailed):
                await join_dht(daemon, STRANGER, doors.libp2p, time.time, is_client=True, membership=swarm)
            connector = Libp2pConnector(STRANGER, daemon, os.urandom, swarm)
            with pytest.raises(ShoalError):
                await connector.connect(doors.peer, doors.libp2p, PATIENCE_S)
            await connector.aclose()
    finally:
        await daemon.aclose()
    return told


def stranger_gets_nothing(doors: Doors, own: Environment) -> None:
    """At every door, with all that somebody may know who has no token: addresses, ids, names, the model's root."""
    assert asyncio.run(asked_directly(doors)) == [b""] * 4
    assert asyncio.run(asked_by_libp2p(doors)) == [SyncReply(Status.REFUSED)] * 2
    forged = encode_invite(replace(doors.token, membership=OTHER_SWARM))
    for word in (doors.libp2p[0], encode_invite(replace(doors.token, membership=None)), forged):
        done = shoal(own, *run_words("--join", word, "--lan", "off"))
        assert (done.returncode != 0, done.stdout) == (True, ""), done.stderr


def revoke(own: Environment, label: str) -> None:
    (token,) = (each for each in json.loads(shoal(own, "invite", "--list", "--json").stdout) if each["label"] == label)
    done = shoal(own, "invite", "--revoke", token["id"])
    assert done.returncode == 0, done.stderr


def test_members_with_nothing_but_a_token_answer_as_the_oracle_and_strangers_and_revoked_ones_get_nothing(
    model: Path,
    environment: Environment,  # noqa: F811
    tmp_path: Path,
) -> None:
    manifest, oracle = make_manifest(model), oracle_tokens(model, tmp_path / "scratch", NUM_TOKENS)
    sampling = Sampling(max_tokens=NUM_TOKENS, ignore_eos=True)
    with node_process(environment, "--model", str(model), "--experts", "all", "--yes") as (founder, _):
        ana, mallory = (member(environment, tmp_path, name) for name in ("ana", "mallory"))
        filling = ("--share", "1GB", "--yes")
        with node_process(ana, *filling, "--seed-trunk", "--name", "ana"):
            wait_until_all_is_kept(ana, "ana", manifest)
            with node_process(mallory, *filling, "--name", "mallory"):
                wait_until_filled(mallory, "mallory", manifest)
                cleo = member(environment, tmp_path, "cleo")
                early = answer(cleo)
                token = invited(environment, "dora")
                stranger_gets_nothing(doors_of(environment, "node", token), empty_disk(environment, tmp_path, "nobody"))
                settings = SwarmSettings(model=model, join=(token,), cache_dir=tmp_path / "cache", max_wait_s=LONG_S)
                with BlockingSwarm(settings) as swarm:
                    wait_for_holders(swarm, 3)
                    streaming = iter(swarm.stream(PROMPT_IDS, sampling))
                    middle = [next(streaming).id for _ in range(4)]
                    revoke(environment, "mallory")
                    wait_for_holders(swarm, 2)
                    middle += [each.id for each in streaming]
                for own, name in ((environment, "node"), (ana, "ana")):
                    wait_until_left(own, name, own_peer(mallory, "mallory"))
                assert shoal(mallory, *run_words("--model", str(model))).returncode != 0, "it can use nobody's experts"
                eve = member(environment, tmp_path, "eve")
                founder.kill()
                founder.wait()
                late = answer(eve)
    assert early == oracle[: len(early)]
    assert middle == oracle
    assert late == oracle[: len(late)]
    assert early
    assert late
