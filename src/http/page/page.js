// The page at /: a chat over /v1/chat/completions, and the engine's counters from /quire/state.
//
// What a model or a server says is only ever put in as text, never as HTML; the page's Content-Security-Policy
// (require-trusted-types-for) makes the browser insist on it.
"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "quire-api-key";

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Fetches, and asks for a key if one is wanted. */
async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers }, cache: "no-store" });
  $("key-form").hidden = answer.status !== 401;
  return answer;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- chat ----

/** The conversation so far, as it is sent. */
let messages = [];
/** Ends the answer that is being written. */
let running = null;

/** A message on the page; parts appear when there is something in them. */
class Bubble {
  constructor(role) {
    this.box = element("article", role);
    this.box.append(element("h4", "", role));
    this.parts = new Map();
    $("log").append(this.box);
  }

  /** Appends text to the part of that name, made on first use. */
  add(name, text, make) {
    if (!text) return;
    if (!this.parts.has(name)) {
      const node = document.createTextNode("");
      this.box.append(make(node));
      this.parts.set(name, node);
    }
    const log = $("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    this.parts.get(name).appendData(text);
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  content(text) {
    this.add("content", text, (node) => wrap("div", "text", node));
  }

  reasoning(text) {
    this.add("reasoning", text, (node) => {
      const details = element("details");
      details.open = true;
      details.append(element("summary", "", "Reasoning"), wrap("div", "text", node));
      return details;
    });
  }

  toolCall(index, text) {
    this.add(`tool ${index}`, text, (node) => wrap("pre", "tool", node));
  }

  wrong(text) {
    this.add("wrong", text, (node) => wrap("div", "text wrong", node));
  }

  note(text) {
    this.box.append(element("small", "", text));
  }
}

function wrap(name, className, node) {
  const made = element(name, className);
  made.append(node);
  return made;
}

/** What to send; throws if the tools are not JSON. */
function requestBody() {
  const system = $("system").value.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_completion_tokens = Number($("max-tokens").value);
  if ($("tools").value.trim()) body.tools = JSON.parse($("tools").value);
  return body;
}

/** The data of server-sent events, as they come. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

/** Takes the answer's chunks in, and tells how fast they come. */
class Answer {
  constructor(bubble) {
    this.bubble = bubble;
    this.started = performance.now();
    this.first = 0;
    this.tokens = 0;
    this.message = { role: "assistant", content: "" };
    this.calls = [];
    this.reason = null;
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices?.[0];
    if (choice) {
      this.delta(choice.delta ?? {});
      this.reason = choice.finish_reason ?? this.reason;
    }
    $("measure").textContent = this.measure();
  }

  delta(delta) {
    const reasoning = delta.reasoning ?? delta.reasoning_content;
    if (!this.first && (delta.content || reasoning || delta.tool_calls)) this.first = performance.now();
    this.last = performance.now();
    this.bubble.reasoning(reasoning);
    this.bubble.content(delta.content);
    this.message.content += delta.content ?? "";
    for (const piece of delta.tool_calls ?? []) this.toolCall(piece);
  }

  toolCall(piece) {
    const call = (this.calls[piece.index] ??= { id: piece.id, type: "function", function: { name: "", arguments: "" } });
    const { name = "", arguments: given = "" } = piece.function ?? {};
    call.function.name += name ?? "";
    call.function.arguments += given ?? "";
    this.bubble.toolCall(piece.index, `${name ? `${name} ` : ""}${given ?? ""}`);
  }

  measure() {
    if (!this.first) return "";
    const seconds = (this.last - this.first) / 1000;
    const rate = this.tokens > 1 && seconds > 0 ? `, ${((this.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    return `${this.tokens} tokens${rate}, first after ${Math.round(this.first - this.started)} ms`;
  }

  /** The message to go on with, if there is any. */
  finish() {
    if (this.calls.length) this.message.tool_calls = this.calls;
    const reason = this.reason && this.reason !== "stop" ? `, ended by ${this.reason}` : "";
    this.bubble.note(this.measure() + reason);
    return this.message.content || this.calls.length ? this.message : null;
  }
}

async function send() {
  const text = $("input").value.trim();
  if (!text || running) return;
  new Bubble("user").content(text);
  messages.push({ role: "user", content: text });
  $("input").value = "";
  const bubble = new Bubble("assistant");
  const answer = new Answer(bubble);
  running = new AbortController();
  busy(true);
  try {
    const response = await call("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(requestBody()),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const data of events(response)) if (data !== "[DONE]") answer.take(JSON.parse(data));
  } catch (error) {
    if (error.name === "AbortError") answer.reason = "you";
    else bubble.wrong(error.message);
  }
  const message = answer.finish();
  // A question without an answer would be asked again with the next one.
  if (message) messages.push(message);
  else messages.pop();
  running = null;
  busy(false);
}

async function refusal(response) {
  if (response.status === 401) return "The key is missing or wrong.";
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered ${response.status}.`;
}

function busy(on) {
  $("send").disabled = on;
  $("stop").disabled = !on;
  $("log").setAttribute("aria-busy", on);
}

function clear() {
  running?.abort();
  messages = [];
  $("log").replaceChildren();
  $("measure").textContent = "";
}

// ---- engine ----

const CELLS = 240;
const PERIOD_MS = 500;
const SAMPLES = 120;
/** Tokens per second, newest last. */
const rates = [];
let before = null;

function show(state) {
  const now = performance.now();
  $("model").textContent = `${state.model} · ${state.version}`;
  $("running").textContent = `${state.running} of ${state.max_num_seqs}`;
  $("waiting").textContent = state.waiting;
  $("tokens-out").textContent = state.generation_tokens_total.toLocaleString();
  $("tokens-in").textContent = state.prompt_tokens_total.toLocaleString();
  $("preemptions").textContent = state.preemptions_total.toLocaleString();
  $("steps").textContent = state.steps_total.toLocaleString();
  $("uptime").textContent = duration(state.uptime_s);
  const { prefix_cache_hits_total: hits, prefix_cache_queries_total: queries } = state;
  $("hits").textContent = queries ? `${Math.round((100 * hits) / queries)} %` : "–";
  if (before) {
    const seconds = (now - before.now) / 1000;
    const rate = (name) => Math.max(0, (state[name] - before.state[name]) / seconds);
    $("rate").textContent = Math.round(rate("generation_tokens_total"));
    $("prompt-rate").textContent = Math.round(rate("prompt_tokens_total"));
    rates.push(rate("generation_tokens_total"));
    if (rates.length > SAMPLES) rates.shift();
    spark();
  }
  before = { now, state };
  showBlocks(state.kv_blocks);
}

function spark() {
  const most = Math.max(1, ...rates);
  const start = SAMPLES - rates.length;
  const point = (rate, i) => `${start + i},${(29 - (28 * rate) / most).toFixed(1)}`;
  $("spark-line").setAttribute("points", rates.map(point).join(" "));
  const label = `${Math.round(rates.at(-1))} tokens per second now, ${Math.round(most)} at most in the last minute`;
  $("spark").setAttribute("aria-label", label);
}

/** A map of shares: the server tells how many blocks are what, not which ones. */
function showBlocks({ total, used, cached, block_size: size }) {
  const box = $("blocks");
  const cells = Math.min(CELLS, total);
  while (box.childElementCount < cells) box.append(element("i"));
  // What is there at all gets a cell at least.
  const share = (blocks) => (total ? Math.min(cells, Math.ceil((blocks * cells) / total)) : 0);
  const numUsed = share(used);
  const numKept = share(used + cached);
  [...box.children].forEach((cell, i) => {
    cell.className = i < numUsed ? "used" : i < numKept ? "cached" : "";
  });
  const each = total > cells ? `; a cell is ${(total / cells).toFixed(1)} blocks` : "";
  const text = `${used} of ${total} blocks of ${size} tokens in use, ${cached} free but cached`;
  $("blocks-text").textContent = `${text}. By number, not by place${each}.`;
  box.setAttribute("aria-label", text);
}

function duration(seconds) {
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor(seconds / 60) % 60;
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

async function watch() {
  let trouble = "";
  if (!document.hidden) {
    try {
      const answer = await call("quire/state");
      if (answer.ok) {
        const state = await answer.json();
        show(state);
        trouble = state.draining ? "shutting down" : "";
      } else {
        trouble = answer.status === 401 ? "needs a key" : `answers ${answer.status}`;
      }
    } catch {
      trouble = "does not answer";
    }
    if ($("health").textContent !== trouble) $("health").textContent = trouble;
  }
  // Without the right key there is nothing to see, and asking again changes nothing.
  if (trouble !== "needs a key") setTimeout(watch, PERIOD_MS);
}

// ---- what people do ----

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", clear);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  $("key").value = "";
  watch();
});
watch();
$("input").focus();
