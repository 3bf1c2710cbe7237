"""The user's choices: looks, and how answers are made. What is changed holds at once and is kept."""

from dataclasses import dataclass, replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.style import Style
from textual.widgets import Checkbox, Input, Select, Static

from shoal.client.translate import N_, _
from shoal.client.tui.panel import Panel
from shoal.client.tui.preferences import HEAT_STYLES, Preferences, save_preferences
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.themes import THEMES


@dataclass(frozen=True, slots=True)
class Number:
    """A preference that is a number. `low`, `high`: what it may be."""

    name: str
    label: str
    low: float
    high: float
    is_whole: bool = False

    def parse(self, words: str) -> float | int | None:
        """The number, or None if it is none or out of range."""
        try:
            value = int(words) if self.is_whole else float(words)
        except ValueError:
            return None
        return value if self.low <= value <= self.high else None


NUMBERS = (
    Number("max_tokens", N_("longest answer, tokens"), 1, 1 << 20, is_whole=True),
    Number("temperature", N_("temperature, 0 is greedy"), 0, 2),
    Number("top_p", N_("top p"), 0.01, 1),
    Number("repetition_penalty", N_("repetition penalty"), 0.5, 3),
    Number("seed", N_("seed, -1 is another each time"), -1, 2**53, is_whole=True),
)

CHECKS = (
    ("thinking", N_("let the model think first")),
    ("shows_reasoning", N_("show thoughts unfolded")),
    ("saves_conversations", N_("keep conversations on this machine")),
)


class Check(Checkbox):
    """Shows its mark only when it is set: Textual's own differs in colour alone."""

    @property
    def _button(self) -> Content:
        side, mark = self.get_component_styles("toggle--button"), "✓" if self.value else " "
        return Content.styled(f"[{mark}]", Style(foreground=side.color))


class SettingsScreen(ShoalScreen):
    """Screen 7."""

    MODE = "settings"
    HELP = N_(
        "Tab goes through the settings; each holds at once. Keys are changed in keys.toml, see the help of any screen."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", N_("Leave field"), id="settings.leave", priority=True),
    ]

    def compose_body(self) -> ComposeResult:
        preferences = self.session.preferences
        with VerticalScroll(id="settings", can_focus=True):
            yield from self._row(_("theme"), Select(
                [(theme.name.removeprefix("shoal-"), theme.name) for theme in THEMES],
                value=self.app.theme, allow_blank=False, id="theme", compact=True,
            ))  # fmt: skip
            yield from self._row(_("map"), Select(
                [(_("colours"), "blocks"), (_("signs"), "glyphs"), (_("digits"), "digits")],
                value=preferences.heat_style or HEAT_STYLES[0], allow_blank=False, id="heat_style", compact=True,
            ))  # fmt: skip
            for number in NUMBERS:
                value = getattr(preferences, number.name)
                yield from self._row(_(number.label), Input(f"{value:g}", id=number.name, compact=True))
            yield from self._row(_("system prompt"), Input(preferences.system_prompt, id="system_prompt", compact=True))
            for name, label in CHECKS:
                yield Check(_(label), getattr(preferences, name), id=name, compact=True)
        yield Panel(id="settings-note")

    def _row(self, label: str, control: Input | Select[str]) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Static(label, classes="label", markup=False)
            yield control

    def show(self) -> None:
        """Nothing here changes by itself."""

    def action_leave(self) -> None:
        self.query_one("#settings").focus()

    @on(Select.Changed)
    def choose(self, event: Select.Changed) -> None:
        """A theme or a style of the map."""
        value, present = str(event.value), self.session.preferences.heat_style or HEAT_STYLES[0]
        if value in (self.app.theme, present):
            return  # as it was: Textual tells the first value too
        if event.select.id == "theme":
            self.app.theme = value
            self._keep(replace(self.session.preferences, theme=value))
        else:
            self._keep(replace(self.session.preferences, heat_style=value))

    @on(Checkbox.Changed)
    def check(self, event: Checkbox.Changed) -> None:
        """Yes or no."""
        name = event.checkbox.id or ""
        self._keep(replace(self.session.preferences, **{name: event.value}))  # type: ignore[arg-type]  # a field's name

    @on(Input.Changed)
    def write(self, event: Input.Changed) -> None:
        """A number or the system prompt; a number that is none is told and not taken."""
        name = event.input.id or ""
        if name == "system_prompt":
            self._keep(replace(self.session.preferences, system_prompt=event.value))
            return
        number = next(each for each in NUMBERS if each.name == name)
        value = number.parse(event.value)
        event.input.set_class(value is None, "-invalid")
        if value is None:
            low, high = f"{number.low:g}", f"{number.high:g}"
            self._tell(_("{name}: a number from {low} to {high}").format(name=_(number.label), low=low, high=high))
            return
        self._keep(replace(self.session.preferences, **{name: value}))  # type: ignore[arg-type]  # as parsed

    def _keep(self, preferences: Preferences) -> None:
        if preferences == self.session.preferences:
            return
        self.session.preferences = preferences
        try:
            save_preferences(self.session.preferences_path, preferences)
            self._tell(_("kept in {path}").format(path=self.session.preferences_path))
        except OSError as error:
            self._tell(_("holds for this run; it could not be kept: {error}").format(error=error))

    def _tell(self, words: str) -> None:
        self.query_one("#settings-note", Panel).set_parts([(words, "$text-muted")])
