// openai and the AI SDK for Node, against the server at QUIRE_URL.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const url = `${process.env.QUIRE_URL}/v1`;
const openai = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const pebble = createOpenAICompatible({ name: "quire", baseURL: url, includeUsage: true, supportsStructuredOutputs: true })(
  "pebble",
);
const messages = [{ role: "user", content: "Who are you?" }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const checks = {
  async "openai: chat, streamed and not"() {
    const whole = await openai.chat.completions.create({ model: "pebble", messages, temperature: 0, max_tokens: 60 });
    const stream = openai.chat.completions.stream({ model: "pebble", messages, temperature: 0, max_tokens: 60 });
    assert.equal(await stream.finalContent(), whole.choices[0].message.content);
    assert.match(whole.choices[0].message.content, /Pebble/);
  },
  async "openai: tools, streamed and not"() {
    const request = {
      model: "pebble",
      messages: [{ role: "user", content: "What is the weather in Paris?" }],
      tools: [weather],
      tool_choice: "required",
      temperature: 0,
      max_tokens: 100,
    };
    const whole = await openai.chat.completions.create(request);
    const [call] = whole.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    const streamed = await openai.chat.completions.stream(request).finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  },
  async "openai: responses, streamed and not"() {
    const request = { model: "pebble", input: "Who are you?", temperature: 0, max_output_tokens: 60 };
    const whole = await openai.responses.create(request);
    const streamed = await openai.responses.stream(request).finalResponse();
    assert.equal(streamed.output_text, whole.output_text);
    assert.match(whole.output_text, /Pebble/);
  },
  async "AI SDK: text, streamed and not"() {
    const { text, usage } = await generateText({ model: pebble, messages, temperature: 0, maxOutputTokens: 60, maxRetries: 0 });
    assert.ok(usage.outputTokens > 0);
    const stream = streamText({ model: pebble, messages, temperature: 0, maxOutputTokens: 60, maxRetries: 0 });
    assert.equal(await stream.text, text);
  },
  async "AI SDK: tools, streamed and not"() {
    const get_weather = tool({ description: "Get the current weather in a city.", inputSchema: z.object({ city: z.string() }) });
    const request = {
      model: pebble,
      prompt: "What is the weather in Paris?",
      tools: { get_weather },
      toolChoice: "required",
      temperature: 0,
      maxOutputTokens: 100,
      maxRetries: 0,
    };
    const { toolCalls } = await generateText(request);
    assert.equal(toolCalls[0].toolName, "get_weather");
    const streamed = await streamText(request).toolCalls;
    assert.deepEqual(streamed[0].input, toolCalls[0].input);
  },
  async "AI SDK: an object"() {
    const schema = z.object({ name: z.string(), age: z.number().int() });
    const request = { model: pebble, schema, prompt: "Ann is 31.", temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
    const { object } = await generateObject(request);
    assert.equal(typeof object.age, "number");
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`${name} ... ok`);
  } catch (error) {
    failed += 1;
    console.log(`${name} ... FAILED`, error);
  }
}
process.exit(failed ? 1 : 0);
