"""The colours of the screens: four themes, each with 4.5 : 1 between text and what it stands on (WCAG 2.2, 1.4.3).

Replica counts run from orange (few) to blue (many), an axis that people with any of the common colour deficiencies can
see; signs say the same (`heat_cells.GLYPHS`), so colour is never the only word.
"""

from collections.abc import Mapping

from textual.theme import Theme

DEFAULT_THEME = "shoal-dark"
MONO_THEME = "shoal-mono"

HEAT: Mapping[str, tuple[str, ...]] = {
    "shoal-dark": ("#ff5c4d", "#f4a836", "#6fb3b8", "#3f86b5", "#2f5fa8"),
    "shoal-light": ("#c4281b", "#d98a00", "#5aa2a8", "#2f77a6", "#1d4b8f"),
    "shoal-contrast": ("#ff4040", "#ffb000", "#00e5ff", "#4d9dff", "#6f7dff"),
    "shoal-mono": ("#000000", "#5c5c5c", "#8c8c8c", "#c0c0c0", "#f2f2f2"),
}
"""Cells of 0, 1, 2, 3 and more replicas, by theme."""

TIMES: Mapping[str, tuple[str, ...]] = {
    "shoal-dark": ("#8fd694", "#c3b1f2", "#7fb4e6", "#5fd3c4", "#ff9e7a", "#8c9d9f"),
    "shoal-light": ("#2e7031", "#6a4bb0", "#1d5f9e", "#0b6b60", "#b3430f", "#586668"),
    "shoal-contrast": ("#00ff66", "#d9b3ff", "#66b3ff", "#00ffff", "#ffb000", "#ffffff"),
    "shoal-mono": ("#f2f2f2", "#c8c8c8", "#b0b0b0", "#dcdcdc", "#ffffff", "#a0a0a0"),
}
"""Segments of a layer's time, in the order of `event_book.SEGMENTS`, by theme."""

THEMES = (
    Theme(
        name="shoal-dark",
        primary="#5fd3c4",
        secondary="#7fb4e6",
        accent="#ff9e7a",
        foreground="#dbe7e6",
        background="#0b1315",
        surface="#101b1e",
        panel="#16252a",
        success="#8fd694",
        warning="#f4b95a",
        error="#ff8577",
        dark=True,
        variables={
            "text-muted": "#93a7a8",
            "block-cursor-background": "#5fd3c4",
            "block-cursor-foreground": "#06100f",
            "footer-background": "#101b1e",
            "footer-key-foreground": "#5fd3c4",
            "footer-description-foreground": "#93a7a8",
            "border": "#2b666a",
            "border-blurred": "#26393d",
            "scrollbar": "#26393d",
            "scrollbar-background": "#0b1315",
            "scrollbar-background-hover": "#0b1315",
            "scrollbar-background-active": "#0b1315",
            "scrollbar-hover": "#3d5b60",
        },
    ),
    Theme(
        name="shoal-light",
        primary="#0b6b60",
        secondary="#1d5f9e",
        accent="#a63d0c",
        foreground="#14211f",
        background="#fbfaf6",
        surface="#f2f0e9",
        panel="#e7e5db",
        success="#2a6a2d",
        warning="#7f5300",
        error="#b3261e",
        dark=False,
        variables={
            "text-muted": "#4f5e5c",
            "block-cursor-background": "#0b6b60",
            "block-cursor-foreground": "#ffffff",
            "footer-background": "#f2f0e9",
            "footer-key-foreground": "#0b6b60",
            "footer-description-foreground": "#4f5e5c",
            "border": "#7fb0aa",
            "border-blurred": "#c9c6ba",
            "scrollbar": "#c9c6ba",
            "scrollbar-background": "#fbfaf6",
        },
    ),
    Theme(
        name="shoal-contrast",
        primary="#ffff00",
        secondary="#00ffff",
        accent="#ffb000",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#000000",
        success="#00ff66",
        warning="#ffff00",
        error="#ff6b6b",
        dark=True,
        variables={
            "text-muted": "#e6e6e6",
            "block-cursor-background": "#ffff00",
            "block-cursor-foreground": "#000000",
            "footer-background": "#000000",
            "footer-key-foreground": "#ffff00",
            "footer-description-foreground": "#ffffff",
            "border": "#ffffff",
            "border-blurred": "#bfbfbf",
            "scrollbar": "#ffffff",
            "scrollbar-background": "#000000",
        },
    ),
    Theme(
        name="shoal-mono",
        primary="#ffffff",
        secondary="#d0d0d0",
        accent="#ffffff",
        foreground="#e4e4e4",
        background="#000000",
        surface="#101010",
        panel="#1c1c1c",
        success="#ffffff",
        warning="#ffffff",
        error="#ffffff",
        dark=True,
        variables={
            "text-muted": "#b0b0b0",
            "block-cursor-background": "#ffffff",
            "block-cursor-foreground": "#000000",
            "footer-background": "#101010",
            "footer-key-foreground": "#ffffff",
            "footer-description-foreground": "#b0b0b0",
            "border": "#8a8a8a",
            "border-blurred": "#4a4a4a",
            "scrollbar": "#5a5a5a",
            "scrollbar-background": "#000000",
        },
    ),
)
