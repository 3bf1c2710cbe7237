"""The requests' JSON schemas as docs/schemas/gateway.json has them: `python -m shoal.client.api.published_schema`."""

import json

import msgspec

from shoal.client.api.chat_schema import ChatRequest
from shoal.client.api.completion_schema import CompletionRequest, DetokenizeRequest, TokenizeRequest

PATHS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def published_schema() -> str:
    """One JSON document: a schema for every path that takes a body, and what they share."""
    schemas, components = msgspec.json.schema_components(
        PATHS.values(),
        ref_template="#/$defs/{name}",
        schema_hook=lambda kind: {"description": "any JSON"},
    )
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "paths": dict(zip(PATHS, schemas, strict=True)),
        "$defs": components,
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(published_schema(), end="")
