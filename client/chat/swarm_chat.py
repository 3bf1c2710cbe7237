"""Chat through a joined swarm: the first implementation of `ChatBackend`, in one process with the trunk."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from shoal.client.chat.backend import ChatMessage, ChatOptions, ChatPiece
from shoal.client.chat.reasoning import OPEN, ReasoningSplitter
from shoal.client.engine.sampler import Sampling
from shoal.client.swarm import Swarm
from shoal.client.translate import _
from shoal.protocol.errors import InvalidRequest


class SwarmChat:
    """Answers with a swarm's model."""

    def __init__(self, swarm: Swarm, model_name: str) -> None:
        self._swarm = swarm
        self._model_name = model_name

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def where(self) -> str:
        return _("swarm")

    async def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[ChatPiece, None]:
        """As the seam says."""
        prompt_ids = self._prompt_ids(messages, options.thinking)
        splitter = ReasoningSplitter(self._begins_thinking(messages, options.thinking))
        sampling = self._sampling(options, len(prompt_ids))
        async with aclosing(self._swarm.stream(prompt_ids, sampling)) as tokens:
            async for token in tokens:
                split = splitter.push(token.text)
                is_last = token.finish_reason is not None
                rest = splitter.end() if is_last else None
                yield ChatPiece(
                    text=split.text + (rest.text if rest else ""),
                    reasoning=split.reasoning + (rest.reasoning if rest else ""),
                    num_tokens=1,
                    finish_reason=token.finish_reason.value if token.finish_reason else None,
                )

    def _prompt_ids(self, messages: Sequence[ChatMessage], thinking: bool) -> list[int]:
        tokenizer = self._swarm.engine.tokenizer
        if tokenizer is None:
            raise InvalidRequest("the model has no tokenizer.json, so it can not chat")
        return tokenizer.encode_chat([each.as_plain() for each in messages], variables={"thinking": thinking})

    def _begins_thinking(self, messages: Sequence[ChatMessage], thinking: bool) -> bool:
        """Whether the template itself has opened the thought (DeepSeek-V3.1's does)."""
        tokenizer = self._swarm.engine.tokenizer
        if tokenizer is None or not thinking:
            return False
        plain = [each.as_plain() for each in messages]
        return tokenizer.chat_template.render(plain, variables={"thinking": True}).rstrip().endswith(OPEN)

    def _sampling(self, options: ChatOptions, num_prompt_tokens: int) -> Sampling:
        """A chat's `max_tokens` is a ceiling: near the context's end the answer ends with `length`, which is said."""
        room = self._swarm.engine.trunk.config.max_position_embeddings - num_prompt_tokens
        return Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
            max_tokens=max(1, min(options.max_tokens, room)),
        )
