"""The verbs that talk to a running node: status, peers, coverage, logs, pause, resume, stop.

All go through the control socket; `shoal.protocol.control` has the messages, which `--json` prints as they are.
"""

import json
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated, TypeVar

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import JsonOption, NameOption, parse_duration
from shoal.client.translate import _
from shoal.protocol.control import (
    ControlReply,
    ControlRequest,
    Coverage,
    Drain,
    FollowLogs,
    GetCoverage,
    GetPeers,
    GetStatus,
    LogLine,
    NodeStatus,
    Pause,
    Peers,
    Resume,
)
from shoal.protocol.control import as_json as to_json

Reply = TypeVar("Reply", NodeStatus, Peers, Coverage)


def status(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Say what the node of this machine is doing."""
    from shoal.cli.reports import status_lines

    _show(name, GetStatus(), NodeStatus, status_lines, as_json)


def peers(name: NameOption = None, as_json: JsonOption = False) -> None:
    """List the peers that the node knows, holders and clients; without a node, who of our swarm is on the LAN."""
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
            print(json.dumps(to_json(said)) if as_json else "\n".join(peer_lines(said)))

        run_coroutine(show)


def coverage(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Say how many holders every expert has, and what the swarm lacks."""
    from shoal.cli.reports import coverage_lines

    _show(name, GetCoverage(), Coverage, coverage_lines, as_json)


def pause(
    duration: Annotated[str | None, typer.Argument(help="E.g. 2h or 45m. Default: until `shoal resume`.")] = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the machine back: within a second nothing is computed for others; experts stay in memory."""
    from shoal.cli.reports import state_line

    _show(name, Pause(parse_duration(duration)), NodeStatus, lambda said: [state_line(said)], as_json)


def resume(name: NameOption = None, as_json: JsonOption = False) -> None:
    """End a pause. What the settings forbid, a schedule or a battery, stays forbidden."""
    from shoal.cli.reports import state_line

    _show(name, Resume(), NodeStatus, lambda said: [state_line(said)], as_json)


def stop(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Tell the node to finish what it has begun and end, as SIGTERM does."""
    from shoal.cli.reports import state_line

    _show(name, Drain(), NodeStatus, lambda said: [state_line(said)], as_json)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Lines of the past.", min=0, max=10_000)] = 20,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what the node has logged; of a node that has ended, the end of its file."""
    from shoal.protocol.errors import NodeNotRunning

    with reporting_errors():
        try:
            run_coroutine(lambda: _follow(_name(name), FollowLogs(lines, follow), as_json))
        except NodeNotRunning:
            if follow or not _print_file(_name(name), lines, as_json):
                raise


def _show(
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
