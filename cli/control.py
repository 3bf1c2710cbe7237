"""The verbs that talk to a running node: status, peers, coverage, logs, pause, resume, stop.

All go through the control socket; `shoal.protocol.control` has the messages, which `--json` prints as they are. Here
are the verbs alone: what they do is in `node_answers.py`.
"""

from typing import Annotated

import typer

from shoal.cli.options import JsonOption, NameOption, parse_duration


def status(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Say what the node of this machine is doing."""
    from shoal.cli.node_answers import show_answer
    from shoal.cli.reports import status_lines
    from shoal.protocol.control import GetStatus, NodeStatus

    show_answer(name, GetStatus(), NodeStatus, status_lines, as_json)


def peers(name: NameOption = None, as_json: JsonOption = False) -> None:
    """List the peers that the node knows, holders and clients; without a node, who of our swarm is on the LAN."""
    from shoal.cli.node_answers import show_peers

    show_peers(name, as_json)


def coverage(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Say how many holders every expert has, and what the swarm lacks."""
    from shoal.cli.node_answers import show_answer
    from shoal.cli.reports import coverage_lines
    from shoal.protocol.control import Coverage, GetCoverage

    show_answer(name, GetCoverage(), Coverage, coverage_lines, as_json)


def pause(
    duration: Annotated[str | None, typer.Argument(help="E.g. 2h or 45m. Default: until `shoal resume`.")] = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the machine back: within a second nothing is computed for others; experts stay in memory."""
    from shoal.cli.node_answers import show_answer
    from shoal.cli.reports import state_line
    from shoal.protocol.control import NodeStatus, Pause

    show_answer(name, Pause(parse_duration(duration)), NodeStatus, lambda said: [state_line(said)], as_json)


def resume(name: NameOption = None, as_json: JsonOption = False) -> None:
    """End a pause. What the settings forbid, a schedule or a battery, stays forbidden."""
    from shoal.cli.node_answers import show_answer
    from shoal.cli.reports import state_line
    from shoal.protocol.control import NodeStatus, Resume

    show_answer(name, Resume(), NodeStatus, lambda said: [state_line(said)], as_json)


def stop(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Tell the node to finish what it has begun and end, as SIGTERM does."""
    from shoal.cli.node_answers import show_answer
    from shoal.cli.reports import state_line
    from shoal.protocol.control import Drain, NodeStatus

    show_answer(name, Drain(), NodeStatus, lambda said: [state_line(said)], as_json)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Lines of the past.", min=0, max=10_000)] = 20,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what the node has logged; of a node that has ended, the end of its file."""
    from shoal.cli.node_answers import show_logs
    from shoal.protocol.control import FollowLogs

    show_logs(name, FollowLogs(lines, follow), as_json)
