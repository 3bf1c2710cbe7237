"""All screens, two sizes, three themes: they look as they did, and everything that is read can be read."""

import asyncio
from pathlib import Path

import pytest

from shoal.client.tui.themes import MONO_THEME
from tests.client.tui.pictures import SIZES, SNAPSHOTS, THEMES, Picture, name_of, pictures

MIN_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3 (AA)."""


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TEXTUAL_ANIMATIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANGUAGE", "en")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_screens_look_as_they_did(size: tuple[int, int], theme: str, tmp_path: Path) -> None:
    drawn = asyncio.run(pictures(size, theme, tmp_path))
    changed = []
    for mode, picture in drawn.items():
        name = name_of(mode, size, theme)
        if (SNAPSHOTS / name).read_text(encoding="utf-8") != picture.svg:
            (tmp_path / name).write_text(picture.svg, encoding="utf-8")
            changed.append(name)
    assert not changed, f"see {tmp_path}; if this is meant: python -m tests.client.tui.pictures"
    assert_readable(drawn)


def test_the_mono_theme_has_no_colours_and_can_be_read(tmp_path: Path) -> None:
    drawn = asyncio.run(pictures((80, 24), MONO_THEME, tmp_path))
    assert_readable(drawn)
    for mode, picture in drawn.items():
        if mode == "chat":
            continue  # code in an answer keeps its colours
        for strip in picture.strips:
            for segment in strip:
                color = segment.style.color if segment.style else None
                if color is not None and color.triplet is not None:
                    assert len(set(color.triplet)) == 1, (mode, segment)


def assert_readable(drawn: dict[str, Picture]) -> None:
    """Every letter and digit has enough contrast to what it stands on."""
    poor = set()
    for mode, picture in drawn.items():
        for strip in picture.strips:
            for text, style, _ in strip:
                if style is None or not any(character.isalnum() for character in text):
                    continue
                front, back = style.color, style.bgcolor
                if front is None or back is None or front.triplet is None or back.triplet is None:
                    continue
                if style.reverse:
                    front, back = back, front
                ratio = contrast(front.get_truecolor(), back.get_truecolor())
                if ratio < MIN_CONTRAST:
                    poor.add((mode, text.strip()[:20], front.name, back.name, round(ratio, 2)))
    assert not poor


def contrast(front: tuple[int, int, int], back: tuple[int, int, int]) -> float:
    """WCAG's contrast ratio of two colours."""
    lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: tuple[int, int, int]) -> float:
    """WCAG's relative luminance."""
    parts = [channel / 255 for channel in color]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
