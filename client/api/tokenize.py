"""`/tokenize`, `/detokenize`, `/tokenizer_info`: vLLM's endpoints, so that evaluations need none of their own."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shoal.client.api.body import read_json
from shoal.client.api.chat_prompt import chat_prompt
from shoal.client.api.completion_schema import DetokenizeRequest, TokenizeRequest
from shoal.client.api.errors import bad_request
from shoal.client.api.services import Services
from shoal.client.api.token_names import token_name


class TokenizerEndpoints:
    """What the model's tokenizer does."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def tokenize(self, request: Request) -> Response:
        """Text or messages to token ids."""
        body = await read_json(request, TokenizeRequest)
        self._services.check_model(body.model)
        tokenizer = self._services.tokenizer
        ids = self._ids(body)
        names = [token_name(tokenizer, token_id) for token_id in ids] if body.return_token_strs else None
        max_model_len = self._services.model.max_model_len
        return JSONResponse({"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": names})

    async def detokenize(self, request: Request) -> Response:
        """Token ids to text, control tokens included."""
        body = await read_json(request, DetokenizeRequest)
        self._services.check_model(body.model)
        if max(body.tokens, default=0) >= self._services.model.vocab_size:
            raise bad_request(f"tokens: ids are below {self._services.model.vocab_size}", "tokens")
        return JSONResponse({"prompt": self._services.tokenizer.decode(body.tokens, skips_special_tokens=False)})

    async def info(self, request: Request) -> Response:
        """What a client needs to render and count by itself."""
        tokenizer = self._services.tokenizer
        template = tokenizer.chat_template.source if tokenizer.has_chat_template else None
        return JSONResponse(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": template,
                "model_max_length": self._services.model.max_model_len,
                "vocab_size": tokenizer.vocab_size,
                **tokenizer.special_tokens,
            }
        )

    def _ids(self, body: TokenizeRequest) -> list[int]:
        tokenizer = self._services.tokenizer
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("prompt: give either prompt or messages", "prompt")
        if body.messages is not None:
            variables = body.chat_template_kwargs or {}
            return chat_prompt(tokenizer, body.messages, body.tools or [], variables, body.add_generation_prompt).ids
        return tokenizer.encode(
            body.prompt or "", parses_control_tokens=body.parse_special, adds_special_tokens=body.add_special_tokens
        )
