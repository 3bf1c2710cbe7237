"""One message of the transcript. An answer is Markdown that grows; what the model thought is folded away above it.

What a model wrote is data: it passes `printable`, its links are shown and not opened, and Textual's own markup is off.
"""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Collapsible, Markdown, Static
from textual.widgets.markdown import MarkdownStream

from shoal.client.chat.backend import ChatMessage
from shoal.client.chat.safe_text import printable
from shoal.client.translate import _


class QuestionView(Vertical):
    """What the user said."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(_("You"), classes="speaker", markup=False)
        yield Static(printable(self._text), classes="said", markup=False)


class AnswerView(Vertical):
    """What the model says, whole or growing."""

    def __init__(self, speaker: str, message: ChatMessage | None = None, shows_reasoning: bool = False) -> None:
        """message: None for an answer that is about to come."""
        super().__init__()
        self._speaker = printable(speaker)
        self.text = message.content if message else ""
        self.reasoning = message.reasoning if message else ""
        self._shows_reasoning = shows_reasoning
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        yield Static(self._speaker, classes="speaker", markup=False)
        with Collapsible(
            title=self._thought_title(), collapsed=not self._shows_reasoning, classes="thought"
        ) as thought:
            yield Static(printable(self.reasoning), markup=False, classes="reasoning")
        thought.display = bool(self.reasoning)
        yield Markdown(printable(self.text), open_links=False)

    async def add(self, text: str, reasoning: str) -> None:
        """Show the next piece."""
        if reasoning:
            self.reasoning += reasoning
            thought = self.query_one(Collapsible)
            thought.display = True
            thought.title = self._thought_title()
            self.query_one(".reasoning", Static).update(printable(self.reasoning))
        if text:
            self.text += text
            if self._stream is None:
                self._stream = Markdown.get_stream(self.query_one(Markdown))
            await self._stream.write(printable(text))

    async def finish(self) -> None:
        """No more pieces will come."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.stop()

    def toggle_reasoning(self) -> None:
        thought = self.query_one(Collapsible)
        thought.collapsed = not thought.collapsed

    def _thought_title(self) -> str:
        return _("Thought · {number} words").format(number=len(self.reasoning.split()))


class NoteView(Static):
    """A word of ours between the messages: a stop, a failure. kind: `note` or `error`."""

    def __init__(self, text: str, kind: str = "note") -> None:
        super().__init__(printable(text), markup=False, classes=kind)
