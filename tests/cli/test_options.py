"""What a user types is read as he means it, or refused with an example of how to write it."""

import pytest
import typer

from shoal.cli.options import SpeculateOption, TrunkFormatOption, parse_ids, parse_size
from shoal.client.settings import SPECULATIONS, TRUNK_FORMATS
from shoal.client.speculation.choice import Speculation
from shoal.client.trunk.linear_maker import TrunkFormat


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("2GB", 2_000_000_000),
        ("512MiB", 512 * 2**20),
        ("1.5 G", 1_500_000_000),
        ("800", 800),
        ("3kb", 3000),
        (None, None),
    ],
)
def test_sizes_have_decimal_and_binary_units(words: str | None, expected: int | None) -> None:
    assert parse_size(words) == expected


@pytest.mark.parametrize("words", ["", "GB", "-1GB", "2 XB", "1e9", "2GBs"])
def test_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(typer.BadParameter, match="2GB"):
        parse_size(words)


def test_token_ids_are_separated_by_commas() -> None:
    assert parse_ids("5,17, 3") == [5, 17, 3]
    assert parse_ids(None) is None


@pytest.mark.parametrize("words", ["", "5,", "a,b", "5 17"])
def test_what_are_no_token_ids_is_refused(words: str) -> None:
    with pytest.raises(typer.BadParameter, match="5,17,3"):
        parse_ids(words)


def test_trunk_formats_are_named_alike_everywhere() -> None:
    assert [option.value for option in TrunkFormatOption] == list(TRUNK_FORMATS) == [each.value for each in TrunkFormat]


def test_drafters_are_named_alike_everywhere() -> None:
    assert [option.value for option in SpeculateOption] == list(SPECULATIONS) == [each.value for each in Speculation]
