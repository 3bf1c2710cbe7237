"""`shoal chat`: the screens, the line mode, and the screens in a browser."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import (
    ActivationsFlag,
    ActivationsOption,
    ChannelOption,
    DTypeOption,
    LanOption,
    LanUseOption,
    PrefillAheadFlag,
    SpeculateFlag,
    SpeculateOption,
)
from shoal.client.engine.engine_settings import PREFILL_AHEAD

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from shoal.cli.chat_connections import SwarmWords
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
    web: Annotated[bool, typer.Option("--web", help="The screens in a browser on this machine.")] = False,
    web_port: Annotated[int, typer.Option(help="Port of --web; 0: any free one.", min=0, max=65535)] = 0,
    node_name: Annotated[str, typer.Option(help="Which node of this machine the node screen shows.")] = "node",
    nodes: Annotated[int, typer.Option(help="Node processes of --demo.", min=1, max=64)] = 4,
    replicas: Annotated[int, typer.Option(help="Holders of every expert of --demo.", min=1)] = 2,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    channel: Annotated[ChannelOption, typer.Option(help="How experts are reached.")] = ChannelOption.DIRECT,
    lan: LanUseOption = LanOption.MEMBERS,
    speculate: SpeculateFlag = SpeculateOption.OFF,
    activations: ActivationsFlag = ActivationsOption.EXACT,
    prefill_ahead: PrefillAheadFlag = PREFILL_AHEAD,
) -> None:
    """Chat with a model: in a swarm, or at any OpenAI-compatible endpoint."""
    with reporting_errors():
        if (demo or api is not None) and os.environ.get("SHOAL_JOIN"):
            join = None  # a flag wins over the environment
        from shoal.cli.swarms import words_to_join

        words_in = words_to_join(join) if join or not (demo or api is not None) else ()
        is_elsewhere = demo or api is not None
        if sum((bool(words_in) or (lan is LanOption.ANY and not is_elsewhere), demo, api is not None)) != 1:
            raise typer.BadParameter(
                "give one of --join TOKEN, --demo, --api URL and --lan any, or type `shoal join` first"
            )
        words = _swarm_words(model, words_in, dtype, channel, lan, (speculate, activations, prefill_ahead))
        if web:
            options = {"--api": api, "--api-model": api_model, "--model": model, "--node-name": node_name}
            options |= {"--dtype": dtype.value, "--channel": channel.value, "--lan": lan.value}
            options |= {"--speculate": speculate.value, "--activations": activations.value}
            arguments = _arguments(options | {"--prefill-ahead": str(prefill_ahead)})
            _run_web(web_port, arguments, words, api_key, (nodes, replicas) if demo else None)
            return
        with _noise_to(_log_path()):
            from shoal.cli.chat_connections import demonstration, endpoint, joined

            if api is not None:
                opener = endpoint(api, api_key, api_model)
            elif demo:
                opener = demonstration(words, _fork_server(), nodes, replicas)
            else:
                opener = joined(words)
            _run(opener, node_name, plain, tells_stories=api is None and model is None)


def _run(opener: "Opener", node_name: str, plain: bool, tells_stories: bool) -> None:
    session = _session(node_name, tells_stories)
    if plain:
        from shoal.client.chat.plain_chat import PlainChat

        run_coroutine(lambda: PlainChat(session, opener).run())
        return
    from platformdirs import user_config_path

    from shoal.client.tui.app import ShoalApp, action_ids, run_app
    from shoal.client.tui.keymap import load_keymap

    keymap_path = user_config_path("shoal") / "keys.toml"
    app = ShoalApp(session, load_keymap(keymap_path, action_ids()), keymap_path)
    server_pid = os.environ.get("SHOAL_CHAT_SERVER")
    run_coroutine(lambda: run_app(app, opener, int(server_pid) if server_pid else None))


def _run_web(
    port: int, arguments: list[str], words: "SwarmWords", api_key: str | None, demo: tuple[int, int] | None
) -> None:
    """`--web`. demo: nodes and replicas."""
    from shoal.cli.chat_web import joining, of_nodes, serve_in_browser

    if demo is not None:
        from shoal.cli.chat_connections import local_nodes

        nodes = local_nodes(words, _fork_server(), *demo, print)
        run_coroutine(lambda: serve_in_browser(port, of_nodes(arguments, nodes)))
        return
    given = {"SHOAL_JOIN": " ".join(words.join), "SHOAL_API_KEY": api_key or ""}
    secrets = {name: value for name, value in given.items() if value}
    run_coroutine(lambda: serve_in_browser(port, joining(arguments, secrets)))


def _arguments(options: dict[str, str | Path | None]) -> list[str]:
    """What was said, for a window's process; nothing that is secret."""
    return [word for name, value in options.items() if value for word in (name, str(value))]


def _swarm_words(
    model: Path | None,
    join: tuple[str, ...],
    dtype: str,
    channel: str,
    lan: LanOption,
    ways: tuple[SpeculateOption, ActivationsOption, int],
) -> "SwarmWords":
    from shoal.cli.chat_connections import SwarmWords
    from shoal.simulations.demo_model import MODEL_DIRECTORY

    name = model.name if model else DEMO_NAME
    speculate, activations, prefill_ahead = ways
    return SwarmWords(
        model or MODEL_DIRECTORY, name, join, dtype, channel, lan.value, speculate.value, activations.value,
        prefill_ahead, named=model,
    )  # fmt: skip


def _fork_server() -> "ForkServerContext":
    from shoal.simulations.fork_server import start_fork_server

    return start_fork_server()


def _session(node_name: str, tells_stories: bool) -> "Session":
    from platformdirs import user_config_path, user_data_path

    from shoal.client.chat.conversations import ConversationStore
    from shoal.client.chat.node_control import LocalNode
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
