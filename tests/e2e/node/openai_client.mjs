// The unmodified OpenAI client against a Sluice router: node openai_client.mjs BASE_URL MODEL QUESTION
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: question }];

const models = await client.models.list();
assert.deepEqual(models.data.map((m) => m.id), [model]);

// Streaming, with usage.
let text = "";
let usage = null;
let finish = null;
let events = 0;
const stream = await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  events += 1;
  if (chunk.usage) usage = chunk.usage;
  if (chunk.choices.length === 0) continue;
  text += chunk.choices[0].delta.content ?? "";
  finish = chunk.choices[0].finish_reason ?? finish;
}
assert.match(text, /9034/);
assert.equal(finish, "stop");
assert.ok(events > 3);
assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);

// Whole answers, several choices, log-probabilities.
const whole = await client.chat.completions.create({
  model, messages, temperature: 0, n: 2, logprobs: true, top_logprobs: 2,
});
assert.equal(whole.choices.length, 2);
for (const choice of whole.choices) {
  assert.equal(choice.message.content, text);
  assert.ok(choice.logprobs.content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2));
}

// Completions with a seed repeat themselves.
const seeded = async () =>
  (await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 20, seed: 7, temperature: 1 }))
    .choices[0].text;
assert.equal(await seeded(), await seeded());

// Errors carry status, type, code and parameter.
await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), (error) => {
  assert.equal(error.status, 404);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(client.chat.completions.create({ model, messages, temperature: -1 }), (error) => {
  assert.equal(error.status, 400);
  assert.equal(error.param, "temperature");
  return true;
});

// Abort in the middle.
const aborted = await client.completions.create({ model, prompt: "Once", max_tokens: 3000, stream: true });
for await (const _ of aborted) {
  aborted.controller.abort();
  break;
}
console.log("ok");
