"""Chat in plain lines: for screen readers, slow links and pipes. No cursor movement, no colour, one fact a line.

The same session and the same `ChatBackend` as the screens; a short exchange paints some hundred bytes. Ctrl-C stops the
answer, a second one (or Ctrl-D, or /quit) leaves.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import TextIO

from shoal.client.chat.answer_meter import AnswerMeter
from shoal.client.chat.backend import ChatBackend
from shoal.client.chat.coverage import next_node, summarize
from shoal.client.chat.dialogue import Dialogue
from shoal.client.chat.safe_text import printable
from shoal.client.translate import N_, _, ngettext
from shoal.client.tui.bars import milliseconds, size
from shoal.client.tui.session import Connection, Opener, Session
from shoal.client.tui.words import breaker_word
from shoal.protocol.errors import ShoalError

COMMANDS = {
    "/help": N_("this list"),
    "/again": N_("answer the last question again"),
    "/edit": N_("take the last question back"),
    "/system": N_("set the system prompt: /system TEXT"),
    "/new": N_("begin another conversation"),
    "/list": N_("list saved conversations"),
    "/open": N_("open a saved conversation: /open NUMBER"),
    "/swarm": N_("how well the swarm holds the model"),
    "/peers": N_("who holds it"),
    "/node": N_("the node on this machine"),
    "/quit": N_("leave"),
}


class PlainChat:
    """One run of the line mode."""

    def __init__(
        self, session: Session, opener: Opener, source: TextIO | None = None, out: TextIO | None = None
    ) -> None:
        """source, out: standard input and output unless a test says otherwise."""
        self._session = session
        self._opener = opener
        self._source = source or sys.stdin
        self._out = out or sys.stdout
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Connect, then take line after line. Raises ShoalError if there is no connection."""
        async with self._opener(self._session.book, self._tell) as connection:
            self._session.connection = connection
            self._say(_("Model: {model}").format(model=connection.backend.model_name))
            self._tell_swarm_briefly(connection)
            for notice in self._session.new_notices():
                self._say(notice)
            self._say(_("Type a question, or /help."))
            async with aclosing(self._lines()) as lines:
                async for line in lines:
                    if line == "/quit":
                        return
                    await self._take(line)

    async def _lines(self) -> AsyncGenerator[str, None]:
        """What the user types, without empty lines; a read never holds up the loop. Ends with the input."""
        while True:
            if self._source.isatty():
                print("> ", end="", file=self._out, flush=True)
            line = await asyncio.to_thread(self._source.readline)
            if not line:
                return
            if line.strip():
                yield line.strip()

    async def _take(self, line: str) -> None:
        word, _space, rest = line.partition(" ")
        if word in COMMANDS:
            await self._command(word, rest.strip())
        elif word.startswith("/"):
            self._say(_("There is no {word}; /help lists what there is.").format(word=word))
        else:
            self._session.dialogue.ask(line)
            await self._answer()

    async def _command(self, word: str, rest: str) -> None:
        commands: dict[str, Callable[[], None]] = {
            "/help": self._help,
            "/edit": self._take_back,
            "/system": lambda: self._system(rest),
            "/new": self._new,
            "/list": self._list,
            "/open": lambda: self._open(rest),
            "/swarm": self._swarm,
            "/peers": self._peers,
        }
        if word == "/again":
            if self._session.dialogue.drop_answer():
                await self._answer()
            else:
                self._say(_("There is no question yet."))
        elif word == "/node":
            await self._node()
        else:
            commands[word]()

    async def _answer(self) -> None:
        """Stream one answer; Ctrl-C stops it and only it."""
        connection = self._session.connection
        if connection is None:
            return
        self._answering = asyncio.create_task(self._stream(connection.backend))
        with self._ctrl_c_stops(self._answering):
            try:
                await self._answering
            except asyncio.CancelledError:
                if not self._answering.cancelled():
                    raise  # we ourselves are to end
                self._say(_("stopped"))
            except ShoalError as error:
                self._say(_("Error: {error}").format(error=error))
        self._save()

    async def _stream(self, backend: ChatBackend) -> None:
        session = self._session
        meter = session.meter = AnswerMeter(session.clocks.monotonic_s)
        text = reasoning = ""
        try:
            stream = backend.stream(session.dialogue.conversation.as_prompt(), session.preferences.options())
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    meter.add(piece.num_tokens)
                    if piece.reasoning:
                        self._write(_("Thought: ") if not reasoning else "", piece.reasoning)
                    if piece.text:
                        self._write("\n" if reasoning and not text else "", piece.text)
                    text, reasoning = text + piece.text, reasoning + piece.reasoning
        finally:
            self._write("", "\n" if text or reasoning else "")
            if text or reasoning:
                session.dialogue.answer(text, reasoning)
        self._say(self._figures(meter))

    def _figures(self, meter: AnswerMeter) -> str:
        tokens = ngettext("{number} token", "{number} tokens", meter.num_tokens).format(number=meter.num_tokens)
        rate = _("{rate:.1f} tokens per second").format(rate=meter.tokens_per_s)
        first = _("first after {time}").format(time=milliseconds(meter.ttft_s or 0.0))
        return f"({tokens}, {rate}, {first})"

    @contextlib.contextmanager
    def _ctrl_c_stops(self, task: "asyncio.Task[None]") -> Iterator[None]:
        """While an answer comes, SIGINT ends it; afterwards it means what it meant before."""
        before = signal.getsignal(signal.SIGINT)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)

    def _help(self) -> None:
        for word, what in COMMANDS.items():
            self._say(f"{word}: {_(what)}")

    def _take_back(self) -> None:
        text = self._session.dialogue.take_back()
        self._say(_("There is no question yet.") if text is None else _("Taken back: {text}").format(text=text))

    def _system(self, text: str) -> None:
        self._session.dialogue.set_system_prompt(text)
        self._say(_("System prompt: {text}").format(text=text or _("none")))

    def _new(self) -> None:
        self._session.new_conversation()
        self._say(_("A new conversation."))

    def _list(self) -> None:
        found = self._session.store.all()
        for number, conversation in enumerate(found, 1):
            self._say(f"{number}: {conversation.title}")
        if not found:
            self._say(_("There are none yet."))

    def _open(self, words: str) -> None:
        found = self._session.store.all()
        if not words.isdigit() or not 1 <= int(words) <= len(found):
            self._say(_("/open wants a number of /list."))
            return
        self._session.dialogue = Dialogue(found[int(words) - 1])
        for message in self._session.dialogue.conversation.messages:
            self._say(f"{_('You') if message.role == 'user' else _('Model')}: {message.content}")

    def _swarm(self) -> None:
        swarm = self._session.swarm
        if swarm is None:
            self._say(_("No swarm is seen through an endpoint."))
            return
        coverage = swarm.coverage()
        facts, mend = summarize(coverage), next_node(coverage, swarm.expert_bytes)
        self._say(_("Coverage: {percent:.1f} percent").format(percent=facts.percent))
        self._say(_("Experts: {number}").format(number=facts.num_experts))
        self._say(_("Without a holder: {number}").format(number=facts.num_missing))
        self._say(_("With one holder: {number}").format(number=facts.num_single))
        self._say(_("Worst layer: {layer}").format(layer=facts.worst_layer))
        if mend is not None:
            self._say(_("Needed there: one more node with {size}").format(size=size(mend.size_bytes)))

    def _peers(self) -> None:
        for peer in self._session.peers():
            rtt = _("unknown") if peer.rtt_ms is None else milliseconds(peer.rtt_ms / 1000)
            words = _("{peer}: {state}, {experts} experts, round trip {rtt}, {failures} failures")
            state = breaker_word(peer.breaker)
            self._say(
                words.format(peer=peer.peer, state=state, experts=peer.num_experts, rtt=rtt, failures=peer.failures)
            )
        if not self._session.peers():
            self._say(_("No swarm is seen through an endpoint."))

    async def _node(self) -> None:
        try:
            status = await self._session.node.status() if self._session.node else None
        except ShoalError as error:
            self._say(_("Error: {error}").format(error=error))
            return
        if status is not None:
            self._say(_("State: {state}").format(state=status.state.value))
            self._say(_("Experts: {number}").format(number=status.num_experts))
            self._say(_("Tokens given: {tokens:.1f}").format(tokens=status.tokens_given))
            self._say(_("Sent: {size}").format(size=size(status.bytes_up)))
            self._say(_("Received: {size}").format(size=size(status.bytes_down)))

    def _tell_swarm_briefly(self, connection: Connection) -> None:
        if connection.swarm is not None:
            number = len(connection.swarm.peers())
            self._say(ngettext("{number} peer", "{number} peers", number).format(number=number))

    def _save(self) -> None:
        session = self._session
        conversation = replace(session.dialogue.conversation, updated_s=session.clocks.unix_s())
        if session.preferences.saves_conversations and conversation.messages:
            session.dialogue.conversation = conversation
            session.store.save(conversation)

    def _tell(self, words: str) -> None:
        """What an opening connection does: a line each, but not every percent of it."""
        stage = words.partition(":")[0]
        if stage != self._session.opening:
            self._session.opening = stage
            self._say(stage)

    def _say(self, words: str) -> None:
        print(printable(words), file=self._out, flush=True)

    def _write(self, before: str, text: str) -> None:
        print(before + printable(text), end="", file=self._out, flush=True)
