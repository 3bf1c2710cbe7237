// openai-node: list, chat, stream, abort, tools, errors.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI();
const model = "shoal-demo";
const messages = [{ role: "user", content: "Tell a story about a frog." }];
const parameters = {
  type: "object",
  properties: { color: { type: "string", enum: ["red", "green"] } },
  required: ["color"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "paint", parameters } }];

const cases = {
  async models() {
    const ids = [];
    for await (const each of client.models.list()) ids.push(each.id);
    assert.deepEqual(ids, [model]);
  },
  async chat() {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 12 });
    assert.ok(answer.choices[0].message.content);
    assert.equal(answer.usage.completion_tokens, 12);
  },
  async stream() {
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 12, stream: true });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
    assert.ok(text);
  },
  async abort() {
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 1500, stream: true, ignore_eos: true });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      stream.controller.abort();
      break;
    }
  },
  async tools_streamed() {
    const runner = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", max_tokens: 200 });
    const answer = await runner.finalChatCompletion();
    assert.equal(answer.choices[0].message.tool_calls[0].function.name, "paint");
    JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ model: "gpt-4o", messages }), OpenAI.NotFoundError);
    await assert.rejects(
      client.chat.completions.create({ model, messages, max_tokens: 100000 }),
      (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
    );
  },
};

let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
    console.log("ok ", name);
  } catch (error) {
    failed += 1;
    console.error("FAIL", name, error);
  }
}
process.exit(failed ? 1 : 0);
