"""The schemas in docs/ are those the gateway checks with.

Run: pytest tests/client/api/test_published_schema.py
"""

from pathlib import Path

from shoal.client.api.published_schema import published_schema

PUBLISHED = Path(__file__).parents[3] / "docs" / "schemas" / "gateway.json"


def test_the_published_schemas_are_those_in_use() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == published_schema()
