"""The cost model's predictions stay near what the real client and nodes take under a virtual clock.

Run: pytest tests/simulations/forecast/test_validate.py
"""

from shoal.simulations.forecast.validate import SETTINGS, table, validate
from shoal.simulations.virtual.soak import demo_model_in_memory

SHOWN = ("2 holders, 10 ms, 5 Mbit/s", "2 holders at 5 ms, 2 at 50 ms", "2 holders, 20 ms, 20 Mbit/s, prompt of 512")


def test_predictions_are_within_15_percent_of_measurements() -> None:
    progress: list[int] = []
    with demo_model_in_memory() as model:
        settings = [each for each in SETTINGS if each.name in SHOWN]
        rows = validate(model, settings, lambda what, done, total: progress.append(done))
    assert len(rows) == len(SHOWN)
    assert all(abs(row.error) <= 0.15 for row in rows), table(rows)
    assert progress == [1, 2, 3]
