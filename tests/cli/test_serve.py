"""`shoal serve` gives its engine the limits of its line: one number says how many run."""

import pytest
from typer.testing import CliRunner

from shoal.cli import serve
from shoal.cli.main import app
from shoal.client.api.settings import ApiSettings
from shoal.client.settings import SwarmSettings


@pytest.mark.parametrize("max_running", [1, 8, 256])
def test_what_the_line_lets_run_the_engine_runs(max_running: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[SwarmSettings, ApiSettings]] = []

    async def take(swarm: SwarmSettings, settings: ApiSettings, *_: object) -> None:
        given.append((swarm, settings))

    monkeypatch.setattr(serve, "_serve", take)
    done = CliRunner().invoke(app, ["serve", "--join", "/ip4/127.0.0.1/tcp/9", "--max-running", str(max_running)])
    assert done.exit_code == 0, done.output
    ((swarm, settings),) = given
    assert settings.max_running == swarm.max_streams == max_running
    assert swarm.max_waiting >= max_running  # an answer that has just ended may still stand in the engine
