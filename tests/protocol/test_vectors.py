"""PROTOCOL.md says what the code does: its bytes, and its tables of messages, records, errors and limits."""

import json
import re
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from shoal.protocol import limits, version
from shoal.protocol.dtypes import DType, row_bytes
from shoal.protocol.errors import WireCode
from shoal.protocol.frames import FrameDecoder
from shoal.protocol.handshake import ServerHandshake, signed_bytes
from shoal.protocol.invite import decode_invite
from shoal.protocol.lan import LanSwarm
from shoal.protocol.membership import MemberGate
from shoal.protocol.messages import MESSAGE_TYPES, BytesField, Dispatch, Field, IntField, IntsField, Message, Partial
from shoal.protocol.model_files import decode_files, list_digest
from shoal.protocol.net.refusals import ERROR_TYPES
from shoal.protocol.pulses import earlier
from shoal.protocol.record_book import RecordBook
from shoal.protocol.record_codec import decode_record
from shoal.protocol.records import roster_name
from shoal.protocol.revocation_list import RevocationBook
from shoal.protocol.sync_messages import decode_reply, decode_request
from shoal.protocol.tensors import read_dispatch_body, read_partial_body, request_hash
from tests.protocol import wire_examples as examples

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "PROTOCOL.md").read_text(encoding="utf-8")
VECTORS: dict[str, str] = json.loads((ROOT / "tests/vectors/wire.json").read_text(encoding="utf-8"))
PRIVATE = (
    "founder_key",
    "directory_secret",
    "token_seed",
    "token_id",
    "private_roster_name",
    "lan_sealed",
    "word",
    "pulse_7",
    "pulse_8",
)
FENCED = re.findall(r"^```hex (\w+)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
BLOCKS = {name: "".join(text.split()) for name, text in FENCED}


def section(heading: str) -> str:
    """The text below a heading, to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}.*?\n(.*?)(?=^#+ |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found, f"PROTOCOL.md has no section {heading}"
    return found.group(1)


def rows_of(text: str) -> list[list[str]]:
    """The cells of a section's only table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def bound_of(field: Field) -> tuple[str, str]:
    match field:
        case IntField():
            return "uint", f"{field.low}..{field.high}{'; optional' if field.is_optional else ''}"
        case BytesField():
            return "bin", f"{field.size} bytes"
        case IntsField():
            ascending = ", strictly ascending" if field.is_ascending else ""
            return "list of uint", f"1..{field.max_items} items, each {field.low}..{field.high}{ascending}"


def test_the_vectors_are_made_of_their_seeds_alone():
    assert examples.vectors() == VECTORS


def test_every_block_of_bytes_in_the_document_is_a_vector():
    assert set(BLOCKS) == {
        *examples.FRAMES,
        "node_record",
        "full_record",
        "member_record",
        "revocation_list",
        "sync_request",
        "member_sync_request",
        "sync_reply",
        "file_list",
    }
    for name, text in BLOCKS.items():
        assert text == VECTORS[name], name


@pytest.mark.parametrize(
    "name",
    [
        "server_public_key",
        "client_public_key",
        "request_hash",
        "fetch_hash",
        "roster_name",
        "file_list_digest",
        "invite",
        *PRIVATE,
    ],
)
def test_every_value_in_the_documents_prose_is_a_vector(name):
    assert f"`{VECTORS[name]}`" in DOCUMENT


@pytest.mark.parametrize("name", examples.FRAMES)
def test_the_documents_bytes_are_read_as_the_message_they_name(name):
    (frame,) = FrameDecoder().feed(bytes.fromhex(BLOCKS[name]))
    expected = examples.FRAMES[name]
    assert (frame.request_id, frame.message, bytes(frame.body)) == (
        expected.request_id, expected.message, bytes(expected.body),
    )  # fmt: skip


def test_the_documents_hello_is_admitted():
    (frame,) = FrameDecoder().feed(bytes.fromhex(BLOCKS["hello"]))
    admitted = ServerHandshake(examples.SERVER.peer, examples.SERVER_NONCE).admit(frame.message)
    assert (admitted.peer, admitted.session) == (examples.CLIENT.peer, examples.SESSION)


def test_the_documents_member_hello_opens_the_door_of_its_founder_alone():
    (frame,) = FrameDecoder().feed(bytes.fromhex(BLOCKS["memberhello"]))
    gate = MemberGate(bytes.fromhex(VECTORS["founder_key"]))
    admitted = ServerHandshake(examples.SERVER.peer, examples.SERVER_NONCE, gate).admit(frame.message)
    assert (admitted.peer, admitted.session) == (examples.CLIENT.peer, examples.SESSION)
    opened = examples.SEAL.open(bytes.fromhex(VECTORS["sealed_record"]), examples.SERVER.peer)
    assert opened.hex() == BLOCKS["node_record"]


def test_the_documents_revocation_list_revokes_the_documents_token():
    book = RevocationBook(bytes.fromhex(VECTORS["founder_key"]))
    assert book.take(bytes.fromhex(BLOCKS["revocation_list"]))
    assert book(VECTORS["token_id"])
    rows = rows_of(section("7.2 Revocation lists"))
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]


def test_the_documents_lan_announcement_leads_its_members_to_the_server():
    ours = LanSwarm(examples.MODEL_ROOT, bytes.fromhex(VECTORS["directory_secret"]))
    said = {b"v": b"1", b"s": bytes.fromhex(VECTORS["lan_sealed"])}
    found = ours.read(said, ["192.168.1.9"], examples.LAN_PORT, [IPv4Interface("192.168.1.7/24")])
    assert found == (f"/ip4/192.168.1.9/tcp/4001/p2p/{examples.SERVER.peer}",)


def test_what_a_client_signs_has_the_parts_that_the_document_lists():
    table = section("4. Handshake").split("| bytes | what |")[1].split("\n\n")[0]
    sizes = [int(row[0]) for row in rows_of("|\n" + table)]
    hello = examples.HELLO
    signed = signed_bytes(
        examples.SERVER.peer, hello.public_key, examples.CHALLENGE, (hello.client_nonce, hello.session, hello.lane)
    )
    assert sum(sizes) == len(signed)
    assert sizes[0] == len(version.HANDSHAKE_CONTEXT)
    assert signed.startswith(version.HANDSHAKE_CONTEXT)


def test_the_documents_request_and_answer_fit_together():
    (request,) = FrameDecoder().feed(bytes.fromhex(BLOCKS["dispatch"]))
    (answer,) = FrameDecoder().feed(bytes.fromhex(BLOCKS["partial"]))
    assert isinstance(request.message, Dispatch)
    assert isinstance(answer.message, Partial)
    assert request_hash(request.header_bytes, request.body).hex() == VECTORS["request_hash"]
    assert answer.message.request_hash.hex() == VECTORS["request_hash"]
    rows = read_dispatch_body(request.message, request.body)
    assert rows.row_idx.tolist() == [0, 1, 1]
    assert rows.offsets == (0, 2, 3)
    assert rows.topk_weights.tolist() == [0.75, 0.5, 0.25]
    assert read_partial_body(answer.message, answer.body).shape == rows.x.shape


@pytest.mark.parametrize("name", examples.INEXACT)
def test_the_documents_bytes_of_every_format_are_the_numbers_of_its_examples(name):
    (request,) = FrameDecoder().feed(bytes.fromhex(BLOCKS[f"dispatch_{name}"]))
    (answer,) = FrameDecoder().feed(bytes.fromhex(BLOCKS[f"partial_{name}"]))
    assert isinstance(request.message, Dispatch)
    assert isinstance(answer.message, Partial)
    assert answer.message.request_hash == request_hash(request.header_bytes, request.body)
    x, sums = read_dispatch_body(request.message, request.body).x, read_partial_body(answer.message, answer.body)
    bound = 0.0 if name != "int8" else 8 / 252  # of these examples only int8 loses anything
    assert (x.float() - examples.HIDDEN_STATES.float()).abs().max() <= bound + 2**-6 * (name == "int8")  # bf16 inputs
    assert (sums - examples.SUMS).abs().max() <= bound


def test_the_documents_formats_have_the_sizes_of_the_codes():
    rows = rows_of(section("6.14 Formats"))
    sizes = {"4·H": 4 * 200, "2·H": 2 * 200, "H + ⌈H/128⌉": 202, "H + 2·⌈H/128⌉": 204}
    assert [(int(number), name, sizes[size]) for number, name, size, _ in rows] == [
        (dtype, dtype.name.lower(), row_bytes(dtype, 200)) for dtype in DType
    ]


def test_the_documents_records_are_accepted_in_their_time():
    for name, content in (("node_record", examples.CONTENT), ("full_record", examples.FULL_CONTENT)):
        book = RecordBook()
        kept = book.add(bytes.fromhex(BLOCKS[name]), examples.SERVER.peer, examples.NOW_S)
        assert replace(kept.record, issued_ms=0, pulse=b"") == content
        assert kept.record.issued_ms == examples.NOW_S * 1000


def test_the_documents_members_record_is_believed_in_its_swarm_until_its_token_is_revoked():
    revocations = RevocationBook(bytes.fromhex(VECTORS["founder_key"]))
    book = RecordBook(gate=MemberGate(bytes.fromhex(VECTORS["founder_key"]), revocations))
    kept = book.add(bytes.fromhex(BLOCKS["member_record"]), examples.SERVER.peer, examples.NOW_S)
    assert kept.token_id == VECTORS["token_id"]
    assert replace(kept.record, issued_ms=0, pulse=b"", voucher=b"") == examples.CONTENT
    revocations.take(bytes.fromhex(BLOCKS["revocation_list"]))
    assert book.live(roster_name(examples.MODEL_ROOT), examples.NOW_S) == []


def test_the_documents_pulses_lead_to_its_record():
    record = decode_record(bytes.fromhex(BLOCKS["node_record"]), examples.SERVER.peer)
    pulses = [bytes.fromhex(VECTORS[name]) for name in ("pulse_7", "pulse_8")]
    assert earlier(pulses[1]) == pulses[0]
    assert earlier(pulses[0], 7) == record.pulse


def test_the_documents_sync_is_read_as_what_it_says():
    assert decode_request(bytes.fromhex(BLOCKS["sync_request"])) == examples.SYNC_REQUEST
    assert decode_reply(bytes.fromhex(BLOCKS["sync_reply"])) == examples.SYNC_REPLY
    told = decode_request(bytes.fromhex(BLOCKS["member_sync_request"]))
    assert told == examples.MEMBER_SYNC_REQUEST
    assert examples.SEAL.is_word(told.word, examples.SERVER.peer, examples.CLIENT.peer)


def test_the_documents_token_leads_to_its_list_of_files():
    assert decode_invite(VECTORS["invite"]) == examples.INVITE
    encoded = bytes.fromhex(BLOCKS["file_list"])
    assert list_digest(encoded) == examples.INVITE.files
    assert decode_files(encoded) == examples.FILES


@pytest.mark.parametrize("message", MESSAGE_TYPES.values(), ids=lambda message: message.__name__)
def test_the_documents_message_table_is_the_codecs(message: type[Message]):
    title = f"{message.__name__.upper()} (type {message.TYPE},"
    heading = next(line for line in DOCUMENT.splitlines() if title in line)
    rows = rows_of(section(heading.lstrip("# ")))
    documented = [(key, name, kind, bound) for key, name, kind, _unit, bound in rows]
    assert documented == [(str(field.key), field.name, *bound_of(field)) for field in message.FIELDS]


def test_the_documents_record_table_is_the_codecs():
    from shoal.protocol.record_codec import _OPTIONAL_SCALARS, _SCALARS

    rows = {name: (int(key), kind, bound.split(";")[0]) for key, name, kind, bound in rows_of(section("7. Directory"))}
    assert [key for key, _, _ in rows.values()] == list(range(1, 22))
    for field in (*_SCALARS, *_OPTIONAL_SCALARS):
        assert rows[field.name] == (field.key, *bound_of(field))


def test_the_documents_error_table_is_the_codes():
    documented = [(int(code), name, error, retry) for code, name, error, _, retry, _ in rows_of(section("8. Errors"))]
    assert documented == [
        (code, code.name, ERROR_TYPES[code].__name__, "yes" if ERROR_TYPES[code].retry_elsewhere else "no")
        for code in WireCode
    ]


def test_the_documents_limits_are_the_codes():
    documented = {name: float(value.replace(",", "")) for name, value, _reason in rows_of(section("9. Limits"))}
    assert documented == {name: getattr(limits, name) for name in vars(limits) if name.isupper() and len(name) > 3}


def test_the_documents_versions_are_the_codes():
    text = section("2. Versions")
    contexts = (
        version.PULSE_CONTEXT,
        version.MEMBERSHIP_CONTEXT,
        version.CERTIFICATE_CONTEXT,
        version.SEAL_CONTEXT,
        version.TAG_CONTEXT,
        version.VOUCHER_CONTEXT,
        version.WORD_CONTEXT,
    )
    for context in (version.HANDSHAKE_CONTEXT, version.RECORD_CONTEXT, version.DIRECTORY_KEY_CONTEXT, *contexts):
        assert f"`{context.rstrip(bytes(1)).decode()}` and a zero byte" in text
    assert f"`{version.REQUEST_HASH_CONTEXT}`" in text
    assert f"`{version.FOUNDER_DERIVATION}`" in text
    assert f"`{version.LIBP2P_PROTOCOL_ID}`" in text
    assert f"| protocol version | {version.PROTOCOL_VERSION} |" in text
    assert f"| directory version | {version.DIRECTORY_VERSION} |" in text
    assert f"`{version.DIRECTORY_RPC}`" in text


def test_the_sections_that_the_code_quotes_exist():
    quoted = {
        int(number)
        for path in (ROOT / "protocol").rglob("*.py")
        for number in re.findall(r"PROTOCOL\.md\s+§(\d+)", path.read_text(encoding="utf-8"))
    }
    headings = {int(number) for number in re.findall(r"^## (\d+)\. ", DOCUMENT, re.MULTILINE)}
    assert headings == set(range(1, 15))
    assert quoted <= headings
