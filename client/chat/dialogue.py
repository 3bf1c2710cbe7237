"""A conversation while it is held: ask, answer, answer again, take back. Knows no screen and asks no model."""

from dataclasses import replace

from shoal.client.chat.backend import ChatMessage
from shoal.client.chat.conversations import Conversation


class Dialogue:
    """One conversation and what may be done to its end."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    @property
    def is_waiting(self) -> bool:
        """Whether the last word is the user's."""
        messages = self.conversation.messages
        return bool(messages) and messages[-1].role == "user"

    def ask(self, text: str) -> None:
        """Add the user's message; one that was not answered yet is replaced."""
        if self.is_waiting:
            self.take_back()
        self._add(ChatMessage("user", text))

    def answer(self, text: str, reasoning: str = "") -> None:
        """Add the model's, whole or as far as it came."""
        self._add(ChatMessage("assistant", text, reasoning))

    def drop_answer(self) -> bool:
        """Forget the last answer, so that the question may be asked again; False if there is no question."""
        messages = self.conversation.messages
        if messages and messages[-1].role == "assistant":
            self._set(messages[:-1])
        return self.is_waiting

    def take_back(self) -> str | None:
        """Forget the last question and its answer, and give the question's text; None if there is none."""
        if not self.drop_answer():
            return None
        *rest, question = self.conversation.messages
        self._set(tuple(rest))
        return question.content

    def set_system_prompt(self, text: str) -> None:
        """What the model is told before the first message; empty: nothing."""
        self.conversation = replace(self.conversation, system_prompt=text)

    def _add(self, message: ChatMessage) -> None:
        self._set((*self.conversation.messages, message))

    def _set(self, messages: tuple[ChatMessage, ...]) -> None:
        self.conversation = replace(self.conversation, messages=messages)
