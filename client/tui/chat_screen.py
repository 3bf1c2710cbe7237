"""The conversation: ask, read while it comes, stop, ask again, take back, set the system prompt, open a saved one."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.worker import Worker

from shoal.client.chat.answer_meter import AnswerMeter
from shoal.client.chat.backend import ChatMessage, ChatPiece
from shoal.client.chat.conversations import Conversation
from shoal.client.chat.dialogue import Dialogue
from shoal.client.translate import N_, _
from shoal.client.tui.conversations_dialog import ConversationsDialog
from shoal.client.tui.message_view import AnswerView, NoteView, QuestionView
from shoal.client.tui.prompt import Prompt
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.text_dialog import TextDialog
from shoal.client.tui.vitals import Vitals
from shoal.client.tui.welcome import Welcome
from shoal.protocol.errors import InvalidRequest, ShoalError


class RetryConnection(Message):
    """The user wants the connection tried again."""


class Transcript(VerticalScroll):
    """All messages, the latest at the bottom; stays there while an answer grows, unless the reader scrolls up."""

    HELP = N_("The conversation. Arrows and Page keys scroll; Tab goes to thoughts, which Enter unfolds, and back.")


class ChatScreen(ShoalScreen):
    """Screen 1."""

    MODE = "chat"
    HELP = N_("Ask the model. What it thought is folded above its answer; Esc stops it.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", N_("Stop"), id="chat.stop", priority=True),
        Binding("ctrl+r", "again", N_("Again"), id="chat.again"),
        Binding("ctrl+t", "take_back", N_("Edit"), id="chat.edit"),
        Binding("ctrl+n", "new", N_("New"), id="chat.new"),
        Binding("ctrl+o", "open", N_("Open"), id="chat.open"),
        Binding("ctrl+s", "system_prompt", N_("System prompt"), id="chat.system", show=False),
        Binding("alt+r", "toggle_reasoning", N_("Thoughts"), id="chat.reasoning", show=False),
        Binding("y", "copy", N_("Copy answer"), id="chat.copy", show=False),
        Binding("i", "write", N_("Write"), id="chat.write", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._answering: Worker[None] | None = None
        self._is_pending = False
        """Whether a question waits for the connection."""

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="body"):
            with Vertical(id="talk"):
                with Transcript(id="transcript", can_focus=True):
                    yield Welcome(id="welcome")
                yield Prompt()
            yield Vitals(id="vitals")

    async def on_mount(self) -> None:
        self.query_one(Transcript).anchor()
        await self._redraw()
        self.query_one(Prompt).focus()

    @property
    def is_answering(self) -> bool:
        return self._answering is not None and self._answering.is_running

    def show(self) -> None:
        if self._is_pending and self.session.connection is not None:
            self._start_answer()
        vitals = self.query_one(Vitals)
        vitals.display = self.size.width >= 110 and self.session.swarm is not None
        if vitals.display:
            vitals.show(self.session)
        for welcome in self.query(Welcome):
            welcome.show(self.session)

    @on(Prompt.Sent)
    async def ask(self, sent: Prompt.Sent) -> None:
        """A question was sent: show it and have it answered."""
        await self._end_answer()
        self.session.dialogue.ask(sent.text)
        await self._redraw()
        self._start_answer()

    def _start_answer(self) -> None:
        if self.session.connection is None:
            self._is_pending = self.session.failure is None
            waiting = _("◌ Your question is asked as soon as the connection stands.")
            failed = _("✗ Not connected. Your question is kept; ctrl+r tries to connect again.")
            self._note(waiting if self._is_pending else failed, "note" if self._is_pending else "error")
            return
        self._is_pending = False
        self._answering = self.run_worker(self._answer(), exclusive=True, group="answer")

    async def _answer(self) -> None:
        """Stream one answer. Cancelled when the user stops it: what has come stays."""
        session = self.session
        if session.connection is None:
            return
        backend, dialogue = session.connection.backend, session.dialogue
        session.meter = AnswerMeter(session.clocks.monotonic_s)
        view = AnswerView(backend.model_name, shows_reasoning=session.preferences.shows_reasoning)
        await self.query_one(Transcript).mount(view)
        stream = backend.stream(dialogue.conversation.as_prompt(), session.preferences.options())
        try:
            await self._read(stream, view, session.meter)
        except ShoalError as error:
            self._note(f"✗ {error}", "error")
        finally:
            if view.text or view.reasoning:
                dialogue.answer(view.text, view.reasoning)
            self._save(dialogue)
            if view.is_mounted and self.is_running:
                await view.finish()

    async def _read(self, stream: AsyncGenerator[ChatPiece, None], view: AnswerView, meter: AnswerMeter) -> None:
        """Show the pieces as they come."""
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                meter.add(piece.num_tokens)
                await view.add(piece.text, piece.reasoning)
                if piece.finish_reason == "length":
                    self._note(_("… the answer reached its greatest length"))

    async def _end_answer(self) -> None:
        """Stop what is coming and wait until it has stopped."""
        if self._answering is not None and self._answering.is_running:
            self._answering.cancel()
            await self.workers.wait_for_complete([self._answering])

    async def action_escape(self) -> None:
        """Stop the answer; when none is coming, leave the prompt, so that the number keys work."""
        if self.is_answering and self._answering is not None:
            self._answering.cancel()
            self._note(_("■ stopped"))
        else:
            self.query_one(Transcript).focus()

    async def action_again(self) -> None:
        """Answer the last question again; without a connection, try to connect again."""
        if self.session.connection is None:
            self._is_pending = self.session.dialogue.is_waiting
            self.app.post_message(RetryConnection())
            return
        await self._end_answer()
        if not self.session.dialogue.drop_answer():
            self.notify(_("There is no question yet."))
            return
        await self._redraw()
        self._start_answer()

    async def action_take_back(self) -> None:
        """Put the last question back into the prompt."""
        await self._end_answer()
        text = self.session.dialogue.take_back()
        if text is None:
            self.notify(_("There is no question yet."))
            return
        await self._redraw()
        prompt = self.query_one(Prompt)
        prompt.text = text
        prompt.move_cursor(prompt.document.end)
        prompt.focus()

    async def action_new(self) -> None:
        await self._end_answer()
        self.session.new_conversation()
        self.session.meter = None
        await self._redraw()
        self.query_one(Prompt).focus()

    def action_open(self) -> None:
        self.app.push_screen(ConversationsDialog(self.session.store), self._opened)

    async def _opened(self, conversation: Conversation | None) -> None:
        if conversation is None:
            return
        await self._end_answer()
        self.session.dialogue = Dialogue(conversation)
        await self._redraw()

    def action_system_prompt(self) -> None:
        present = self.session.dialogue.conversation.system_prompt
        self.app.push_screen(TextDialog(_("What the model is told before the conversation"), present), self._told)

    def _told(self, text: str | None) -> None:
        if text is not None:
            self.session.dialogue.set_system_prompt(text.strip())
            self._save(self.session.dialogue)
            self.notify(_("Used from the next answer on."))

    def action_toggle_reasoning(self) -> None:
        for view in self.query(AnswerView):
            view.toggle_reasoning()

    def action_copy(self) -> None:
        answers = [view.text for view in self.query(AnswerView)]
        if answers:
            self.app.copy_to_clipboard(answers[-1])
            self.notify(_("Copied."))

    def action_write(self) -> None:
        self.query_one(Prompt).focus()

    async def _redraw(self) -> None:
        """Make the transcript the dialogue's."""
        transcript = self.query_one(Transcript)
        conversation = self.session.dialogue.conversation
        await transcript.remove_children()
        if not conversation.messages:
            await transcript.mount(Welcome(id="welcome"))
            self.refresh_all()
            return
        speaker = conversation.model or self._speaker()
        await transcript.mount_all([self._view(message, speaker) for message in conversation.messages])

    def _view(self, message: ChatMessage, speaker: str) -> QuestionView | AnswerView:
        if message.role == "user":
            return QuestionView(message.content)
        return AnswerView(speaker, message, self.session.preferences.shows_reasoning)

    def _speaker(self) -> str:
        return self.session.connection.backend.model_name if self.session.connection else _("Model")

    def _note(self, words: str, kind: str = "note") -> None:
        self.query_one(Transcript).mount(NoteView(words, kind))

    def _save(self, dialogue: Dialogue) -> None:
        """Keep the conversation, if the user wants it kept."""
        conversation = replace(dialogue.conversation, model=self._speaker(), updated_s=self.session.clocks.unix_s())
        dialogue.conversation = conversation
        if not (self.session.preferences.saves_conversations and conversation.messages):
            return
        try:
            self.session.store.save(conversation)
        except (OSError, InvalidRequest) as error:
            self.notify(_("The conversation could not be saved: {error}").format(error=error), severity="error")
