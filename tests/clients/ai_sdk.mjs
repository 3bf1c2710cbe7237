// Vercel's AI SDK through its OpenAI-compatible provider: text, stream, reasoning, tools, objects, abort.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "shoal",
  baseURL: process.env.OPENAI_BASE_URL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("shoal-demo");
const prompt = "Tell a story about a frog.";
const paint = tool({ description: "Paint it.", inputSchema: z.object({ color: z.enum(["red", "green"]) }) });

const cases = {
  async generate_text() {
    const answer = await generateText({ model, prompt, maxOutputTokens: 12 });
    assert.ok(answer.text);
    assert.equal(answer.usage.outputTokens, 12);
  },
  async stream_text() {
    const answer = streamText({ model, prompt, maxOutputTokens: 12 });
    let text = "";
    for await (const piece of answer.textStream) text += piece;
    assert.ok(text);
    assert.equal((await answer.usage).outputTokens, 12);
  },
  async reasoning() {
    const providerOptions = { shoal: { reasoningEffort: "high" } };
    const answer = streamText({ model, prompt, maxOutputTokens: 8, providerOptions });
    await answer.consumeStream();
    assert.ok(await answer.reasoningText);
  },
  async tools() {
    const answer = await generateText({ model, prompt, tools: { paint }, toolChoice: "required", maxOutputTokens: 200 });
    assert.equal(answer.toolCalls[0].toolName, "paint");
    assert.ok(["red", "green"].includes(answer.toolCalls[0].input.color));
  },
  async tools_streamed() {
    const answer = streamText({ model, prompt, tools: { paint }, toolChoice: { type: "tool", toolName: "paint" }, maxOutputTokens: 200 });
    await answer.consumeStream();
    assert.equal((await answer.toolCalls)[0].toolName, "paint");
  },
  async object() {
    const schema = z.object({ color: z.enum(["red", "green"]) });
    const { object } = await generateObject({ model, prompt, schema, maxOutputTokens: 200 });
    assert.ok(["red", "green"].includes(object.color));
  },
  async abort() {
    const aborter = new AbortController();
    const answer = streamText({ model, prompt, maxOutputTokens: 1500, abortSignal: aborter.signal });
    for await (const piece of answer.textStream) {
      assert.ok(piece);
      aborter.abort();
    }
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
