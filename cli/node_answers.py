"""What the verbs that talk to a running node do: ask it over the control socket and print its answer.

`control.py` has the verbs; this is loaded when one of them runs, so that `--help` does not wait for the messages.
"""

import json
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeVar

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.client.translate import _
from shoal.protocol.control import (
    ControlReply,
    ControlRequest,
    Coverage,
    FollowLogs,
    GetPeers,
    LogLine,
    NodeStatus,
    Peers,
)
from shoal.protocol.control import as_json as to_json

Reply = TypeVar("Reply", NodeStatus, Peers, Coverage)


def show_logs(name: str | None, request: FollowLogs, is_json: bool) -> None:
    """Print what the node has logged; of one that has ended, the end of its file."""
    from shoal.protocol.errors import NodeNotRunning

    with reporting_errors():
        try:
            run_coroutine(lambda: _follow(_name(name), request, is_json))
        except NodeNotRunning:
            if request.is_following or not _print_file(_name(name), request.num_lines, is_json):
                raise


def show_peers(name: str | None, is_json: bool) -> None:
    """Print whom the node knows; without a node, who of our swarm is on the LAN."""
    from shoal.cli.reports import peer_lines
    from shoal.protocol.errors import NodeNotRunning

    with reporting_errors():

        async def show() -> None:
            from shoal.cli.lan import announced_peers

            try:
                said = await _answer(name, GetPeers(), Peers)
            except NodeNotRunning:
                on_lan = await announced_peers() if name is None else None
                if on_lan is None:
                    raise
                said = on_lan
            print(json.dumps(to_json(said)) if is_json else "\n".join(peer_lines(said)))

        run_coroutine(show)


def show_answer(
    name: str | None, request: ControlRequest, kind: type[Reply], words: Callable[[Reply], list[str]], is_json: bool
) -> None:
    """Ask the node and print its answer."""
    with reporting_errors():

        async def show() -> None:
            reply = await _answer(name, request, kind)
            print(json.dumps(to_json(reply)) if is_json else "\n".join(words(reply)))

        run_coroutine(show)


async def _answer(name: str | None, request: ControlRequest, kind: type[Reply]) -> Reply:
    from shoal.protocol.errors import Malformed
    from shoal.protocol.net.control_socket import ask, runtime_dir

    reply: ControlReply = await ask(runtime_dir(), _name(name), request)
    if not isinstance(reply, kind):
        raise Malformed(f"the node answered with {type(reply).__name__}")
    return reply


async def _follow(name: str, request: FollowLogs, is_json: bool) -> None:
    from shoal.protocol.net.control_socket import follow, runtime_dir

    async with aclosing(follow(runtime_dir(), name, request)) as replies:
        async for reply in replies:
            if isinstance(reply, LogLine):
                _print_line(reply, is_json)


def _print_file(name: str, num_lines: int, is_json: bool) -> bool:
    """The last lines of the log file; False if there is none."""
    from shoal.node.logs import log_path, read_lines, state_dir

    path = log_path(state_dir(), name)
    if not path.exists():
        return False
    for line in read_lines(path, num_lines):
        _print_line(line, is_json)
    print(_("(no node called {name} runs; this is the end of {path})").format(name=name, path=path), file=sys.stderr)
    return True


def _print_line(line: LogLine, is_json: bool) -> None:
    from shoal.cli.reports import log_line

    print(json.dumps(to_json(line)) if is_json else log_line(line), flush=True)


def _name(name: str | None) -> str:
    from shoal.protocol.net.control_socket import DEFAULT_NAME

    return name or DEFAULT_NAME
