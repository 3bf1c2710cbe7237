"""`shoal chat`: the screens and the line mode."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import ChannelOption, DTypeOption

if TYPE_CHECKING:
    from shoal.client.tui.session import Opener, Session

DEMO_NAME = "demo-stories"
"""What the embedded model is called; it tells small stories."""


def chat(
    join: Annotated[
        list[str] | None, typer.Option(help="A peer's address or an invite token; repeatable.", envvar="SHOAL_JOIN")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Start a small swarm on this machine and chat with it.")] = False,
    api: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Its key; best given by the variable.", envvar=["SHOAL_API_KEY", "OPENAI_API_KEY"]),
    ] = None,
    api_model: Annotated[str | None, typer.Option(help="Its model. Default: the first it lists.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint directory. Default: the embedded demonstration model.", envvar="SHOAL_MODEL"),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of screens: for screen readers and slow links.")
    ] = False,
    node_name: Annotated[str, typer.Option(help="Which node of this machine the node screen shows.")] = "node",
    nodes: Annotated[int, typer.Option(help="Node processes of --demo.", min=1, max=64)] = 4,
    replicas: Annotated[int, typer.Option(help="Holders of every expert of --demo.", min=1)] = 2,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    channel: Annotated[ChannelOption, typer.Option(help="How experts are reached.")] = ChannelOption.DIRECT,
) -> None:
    """Chat with a model: in a swarm, or at any OpenAI-compatible endpoint."""
    with reporting_errors():
        if sum((bool(join), demo, api is not None)) != 1:
            raise typer.BadParameter("give one of --join TOKEN, --demo and --api URL")
        with _noise_to(_log_path()):
            from shoal.cli.chat_connections import SwarmWords, demonstration, endpoint, joined

            words = SwarmWords(
                model or _demo_model(),
                model.name if model else DEMO_NAME,
                tuple(join or ()),
                dtype.value,
                channel.value,
            )
            if api is not None:
                opener = endpoint(api, api_key, api_model)
            elif demo:
                from shoal.simulations.fork_server import start_fork_server

                opener = demonstration(words, start_fork_server(), nodes, replicas)
            else:
                opener = joined(words)
            tells_stories = api is None and model is None
            _run(opener, node_name, plain, tells_stories)


def _run(opener: "Opener", node_name: str, plain: bool, tells_stories: bool) -> None:
    session = _session(node_name, tells_stories)
    if plain:
        from shoal.client.plain_chat import PlainChat

        run_coroutine(lambda: PlainChat(session, opener).run())
        return
    from platformdirs import user_config_path

    from shoal.client.tui.app import ShoalApp, action_ids, run_app
    from shoal.client.tui.keymap import load_keymap

    keymap_path = user_config_path("shoal") / "keys.toml"
    app = ShoalApp(session, load_keymap(keymap_path, action_ids()), keymap_path)
    run_coroutine(lambda: run_app(app, opener))


def _session(node_name: str, tells_stories: bool) -> "Session":
    from platformdirs import user_config_path, user_data_path

    from shoal.client.conversations import ConversationStore
    from shoal.client.node_control import LocalNode
    from shoal.client.tui.event_book import EventBook
    from shoal.client.tui.preferences import Preferences, load_preferences
    from shoal.client.tui.session import Clocks, Session
    from shoal.protocol.net.control_socket import runtime_dir

    path = user_config_path("shoal") / "chat.toml"
    # a small model repeats itself without a penalty (measured for `shoal demo`)
    defaults = Preferences(repetition_penalty=1.15, top_p=0.9, max_tokens=200) if tells_stories else Preferences()
    return Session(
        clocks=Clocks(time.perf_counter, time.time),
        book=EventBook(time.perf_counter),
        store=ConversationStore(user_data_path("shoal") / "conversations"),
        preferences=load_preferences(path, defaults),
        preferences_path=path,
        node=LocalNode(runtime_dir(), node_name),
    )


def _demo_model() -> Path:
    from shoal.simulations.demo_model import MODEL_DIRECTORY

    return MODEL_DIRECTORY


def _log_path() -> Path:
    from platformdirs import user_log_path

    path = user_log_path("shoal")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path / "chat.log"


@contextmanager
def _noise_to(path: Path) -> Iterator[None]:
    """Send file descriptor 2, which libraries and our nodes write to, to a file; `sys.stderr` stays the terminal.

    A line of theirs would tear the screen, which Textual draws on `sys.__stderr__`.
    """
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    before, real = (sys.stderr, sys.__stderr__), os.dup(2)
    try:
        os.dup2(log, 2)
        sys.stderr = sys.__stderr__ = terminal  # type: ignore[misc]  # final in name only
        yield
    finally:
        terminal.flush()
        os.dup2(real, 2)
        sys.stderr, sys.__stderr__ = before  # type: ignore[misc]
        os.close(real)
        os.close(log)
