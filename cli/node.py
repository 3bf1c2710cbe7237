"""`shoal node`: give this machine's memory and kernels to a swarm."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import KernelOption, parse_size, program


def node(
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint directory. Default: the embedded demonstration model.", envvar="SHOAL_MODEL"),
    ] = None,
    experts: Annotated[
        str | None, typer.Option(help="What to hold: all, 0-15 (of every layer), 3:0-31,4:5. Default: what is rarest.")
    ] = None,
    share: Annotated[str | None, typer.Option(help="Memory for experts, e.g. 2GB.", envvar="SHOAL_SHARE")] = None,
    join: Annotated[list[str] | None, typer.Option(help="A peer's address or an invite token; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="SHOAL_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the direct channel; 0: any free one.", min=0, max=65535)] = 0,
    p2p_port: Annotated[int, typer.Option(help="Port of libp2p; 0: any free one.", min=0, max=65535)] = 0,
    identity: Annotated[
        Path | None, typer.Option(help="Key file, made when missing. Default: a new key for this run.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Kernel threads; 0: half of the cores.", min=0)] = 0,
    kernel: Annotated[
        KernelOption, typer.Option(help="What runs experts; auto: C++ where it was built.", envvar="SHOAL_KERNEL")
    ] = KernelOption.AUTO,
) -> None:
    """Hold experts of a model and serve them until SIGTERM or Ctrl-C."""
    with reporting_errors():
        from shoal.cli.progress import ProgressBar
        from shoal.experts.choose_backend import KernelChoice
        from shoal.node.daemon import NodeInfo, serve_until_stopped
        from shoal.node.settings import NodeSettings
        from shoal.simulations.demo_model import MODEL_DIRECTORY

        settings = NodeSettings(
            model=model or MODEL_DIRECTORY, experts=experts, share_bytes=parse_size(share), join=tuple(join or ()),
            host=host, port=port, p2p_port=p2p_port, identity=identity, threads=threads, kernel=KernelChoice(kernel),
        )  # fmt: skip

        bar = ProgressBar()

        def announce(info: NodeInfo) -> None:
            bar.stop()
            print(f"holding {info.num_experts} experts ({info.resident_bytes / 1e6:.0f} MB) as {info.peer}")
            of_model = f" --model {model}" if model else ""
            print(f"use it:    {program()} run 'Once upon a time'{of_model} --join {info.invite}")
            print(f"join it:   {program()} node{of_model} --join {info.invite}")
            print("stop:      Ctrl-C (finishes what it has begun)", flush=True)

        with bar:
            run_coroutine(lambda: serve_until_stopped(settings, announce, bar))
        print("stopped", file=sys.stderr)
