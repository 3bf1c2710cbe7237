"""langchain-openai: chat, stream, tools, structured output."""

from cases import MODEL, SIZE_SCHEMA, run_cases
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

ASK = [HumanMessage("Tell a story about a frog.")]
chat = ChatOpenAI(model=MODEL, max_tokens=200, temperature=0)
PAINT = {"name": "paint", "description": "Paint it.", "parameters": SIZE_SCHEMA}


def case_invoke():
    answer = chat.bind(max_tokens=12).invoke(ASK)
    assert answer.content
    assert answer.usage_metadata["output_tokens"] == 12


def case_stream_with_usage():
    chunks = list(chat.bind(max_tokens=12).stream(ASK, stream_usage=True))
    assert "".join(chunk.text if isinstance(chunk.text, str) else chunk.text() for chunk in chunks)
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 12


def case_batch():
    assert len(chat.bind(max_tokens=6).batch([ASK, ASK, ASK])) == 3


async def case_async():
    assert (await chat.bind(max_tokens=6).ainvoke(ASK)).content


def case_tools_and_their_answer():
    with_tools = chat.bind_tools([PAINT], tool_choice="any", parallel_tool_calls=False)
    answer = with_tools.invoke(ASK)
    (call,) = answer.tool_calls
    assert call["name"] == "paint"
    assert set(call["args"]) == {"color", "size"}
    again = chat.bind(max_tokens=4).bind_tools([PAINT])
    assert again.invoke([*ASK, answer, ToolMessage("It is painted.", tool_call_id=call["id"])]) is not None


def case_tools_streamed():
    whole = None
    for chunk in chat.bind_tools([PAINT], tool_choice="paint").stream(ASK):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["name"] == "paint"


def case_structured_output():
    schema = {"title": "painting", **SIZE_SCHEMA}
    assert chat.with_structured_output(schema, method="json_schema").invoke(ASK)["color"] in ("red", "green")
    assert chat.with_structured_output(schema, method="function_calling").invoke(ASK)["size"] in (1, 2, 3)


def case_completions():
    assert OpenAI(model=MODEL, max_tokens=8).invoke("Once upon a time")


run_cases(globals())
