// The official OpenAI package for Node, unchanged, against the HTTP door: what it is told.
//
// Prints one JSON line for each request that was answered, {id, prompt, cached, output}, and for
// each that its caller left, {left}. Whoever runs it compares them with the events.

import OpenAI from "openai";

const COUNT = Number(process.argv[2]);
const AT_ONCE = 50;
const KINDS = 5;

const lose = new Set();
const client = new OpenAI({
  maxRetries: 2,
  // An answer that is lost on its way: the package sends its request again by itself.
  fetch: async (url, init) => {
    const answer = await fetch(url, init);
    const key = new Headers(init.headers).get("idempotency-key");
    if (lose.delete(key)) {
      await answer.arrayBuffer();
      throw new Error("the connection broke");
    }
    return answer;
  },
});

const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { warm: { type: "boolean" } },
      required: ["warm"],
      additionalProperties: false,
    },
  },
};

// A bound text begins as its schema says; of few tokens all may be white space.
function checkBegins(id, text) {
  if (!["", "{"].includes(text.trimStart().slice(0, 1))) throw new Error(`${id}: ${text}`);
}

function told(id, usage) {
  if (!usage) throw new Error(`${id}: no usage`);
  const { prompt_tokens: prompt, completion_tokens: output } = usage;
  const cached = usage.prompt_tokens_details.cached_tokens;
  console.log(JSON.stringify({ id, prompt, cached, output }));
}

async function streamed(id, options, headers) {
  const stream = await client.chat.completions.create(
    { ...options, stream: true, stream_options: { include_usage: true } },
    headers,
  );
  let usage, arguments_ = "";
  for await (const chunk of stream) {
    if (chunk.id !== id) throw new Error(`${chunk.id} is not ${id}`);
    usage = chunk.usage ?? usage;
    for (const call of chunk.choices[0]?.delta?.tool_calls ?? []) {
      arguments_ += call.function?.arguments ?? "";
    }
  }
  told(id, usage);
  return arguments_;
}

async function one(number) {
  const id = `node-${number}`;
  const headers = { headers: { "Idempotency-Key": id } };
  const base = {
    model: "tiny",
    messages: [{ role: "user", content: `Question ${number % 7}` }],
    max_tokens: 4 + (number % 9),
    seed: number,
  };
  switch (number % KINDS) {
    case 0: {
      if (number % 10 === 0) lose.add(id);
      const answer = await client.chat.completions.create(base, headers);
      return told(answer.id, answer.usage);
    }
    case 1:
      return streamed(id, base, headers);
    case 2: {
      const named = { type: "function", function: { name: "weather" } };
      const options = { ...base, tools: [weather], tool_choice: named };
      return checkBegins(id, await streamed(id, options, headers));
    }
    case 3: {
      const schema = { name: "verdict", strict: true, schema: weather.function.parameters };
      const options = { ...base, response_format: { type: "json_schema", json_schema: schema } };
      const answer = await client.chat.completions.create(options, headers);
      checkBegins(id, answer.choices[0].message.content);
      return told(answer.id, answer.usage);
    }
    default: {
      const long = { ...base, max_tokens: 3000, ignore_eos: true, stream: true };
      const stream = await client.chat.completions.create(long, headers);
      for await (const _ of stream) break;
      stream.controller.abort();
      console.log(JSON.stringify({ left: id }));
    }
  }
}

async function fails(kind, status, code, body) {
  try {
    await client.chat.completions.create({ model: "tiny", messages: [], ...body });
  } catch (error) {
    if (error instanceof kind && error.status === status && error.code === code) return;
    throw error;
  }
  throw new Error(`${code}: was answered`);
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);
if (!models.includes("tiny")) throw new Error(`no tiny in ${models}`);
await fails(OpenAI.NotFoundError, 404, "model_not_found", {
  model: "none",
  messages: [{ role: "user", content: "hi" }],
});
await fails(OpenAI.BadRequestError, 400, "invalid_field", {});

const numbers = Array.from({ length: COUNT }, (_, number) => number);
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let number; (number = numbers.shift()) !== undefined; ) await one(number);
  }),
);
if (lose.size) throw new Error(`${[...lose]} were never sent`);
