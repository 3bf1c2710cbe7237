"""What all screens share: the connection, the event book, the conversation, the user's choices. Knows no Textual."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from shoal.client.chat.answer_meter import AnswerMeter
from shoal.client.chat.backend import ChatBackend, SwarmView
from shoal.client.chat.conversations import Conversation, ConversationStore, new_id
from shoal.client.chat.coverage import CoverageSummary, summarize
from shoal.client.chat.dialogue import Dialogue
from shoal.client.chat.node_control import NodeControl
from shoal.client.routing.peers import PeerSnapshot
from shoal.client.tui.event_book import EventBook
from shoal.client.tui.preferences import Preferences
from shoal.protocol.errors import ShoalError
from shoal.protocol.events import Observer


@dataclass(frozen=True, slots=True)
class Connection:
    """What answers, and the swarm behind it if it is one that we have joined ourselves."""

    backend: ChatBackend
    swarm: SwarmView | None = None
    notices: tuple[str, ...] = ()
    """What the user should know of this machine, in their language: what makes exchanges slow, and what cures it."""


Tell = Callable[[str], None]
"""Told in words what an opening connection is doing; may be called from any thread."""

Opener = Callable[[Observer, Tell], AbstractAsyncContextManager[Connection]]
"""Makes the connection; leaving the context ends it, and everything that was started for it."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Time, handed in so that tests may hold it still."""

    monotonic_s: Callable[[], float]
    """For durations."""
    unix_s: Callable[[], float]


@dataclass(slots=True)
class Session:
    """One run of the program."""

    clocks: Clocks
    book: EventBook
    store: ConversationStore
    preferences: Preferences
    preferences_path: Path
    node: NodeControl | None = None
    connection: Connection | None = None
    failure: ShoalError | OSError | None = None
    """Why there is no connection."""
    opening: str = ""
    """What is done to get one."""
    meter: AnswerMeter | None = None
    """Of the answer that comes, or came last."""
    dialogue: Dialogue = field(default_factory=lambda: Dialogue(Conversation(new_id())))

    _told: tuple[str, ...] = ()

    def new_notices(self) -> tuple[str, ...]:
        """What a connection has to say, once: those of another one are new only if they say something else."""
        notices = self.connection.notices if self.connection else ()
        if not notices or notices == self._told:
            return ()
        self._told = notices
        return notices

    @property
    def swarm(self) -> SwarmView | None:
        return self.connection.swarm if self.connection else None

    def peers(self) -> tuple[PeerSnapshot, ...]:
        """The swarm's holders; none without a swarm."""
        return self.swarm.peers() if self.swarm else ()

    def coverage(self) -> CoverageSummary | None:
        """None without a swarm."""
        return summarize(self.swarm.coverage()) if self.swarm else None

    def new_conversation(self) -> None:
        """Begin another; the present one was saved when it last changed."""
        self.dialogue = Dialogue(Conversation(new_id(), system_prompt=self.preferences.system_prompt))
