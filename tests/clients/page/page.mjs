// Opens the page at / in a headless Chromium, chats, and reads the engine's counters: what a person would do on
// the first day. Needs QUIRE_URL; with CHROMIUM (a path) that browser is used, else the one of the npm package.
import assert from "node:assert/strict";

import puppeteer from "puppeteer-core";

const url = process.env.QUIRE_URL;
const key = process.env.QUIRE_KEY;

/** A browser that may go nowhere but to the server. */
async function browser() {
  if (process.env.CHROMIUM) {
    return puppeteer.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  }
  const { default: chromium } = await import("@sparticuz/chromium");
  const executablePath = await chromium.executablePath();
  return puppeteer.launch({ executablePath, args: chromium.args, headless: "shell" });
}

/** Complaints of the page, and addresses that it asked for. */
function watch(page) {
  const seen = { complaints: [], addresses: new Set() };
  page.on("console", (message) => {
    const kind = message.type();
    if (kind === "error" || kind === "warn") seen.complaints.push(`${kind}: ${message.text()}`);
  });
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("request", (request) => seen.addresses.add(request.url()));
  return seen;
}

const text = (page, selector) => page.$eval(selector, (node) => node.textContent);

const until = (page, condition, ...args) => page.waitForFunction(condition, { timeout: 30_000 }, ...args);

async function setSetting(page, id, value) {
  await page.$eval(`#${id}`, (node, value) => (node.value = value), value);
}

async function say(page, words) {
  await page.type("#input", words);
  await page.keyboard.press("Enter");
}

async function chats(page) {
  await setSetting(page, "max-tokens", "200");
  await setSetting(page, "temperature", "0");
  // How often text was added.
  await page.evaluate(() => {
    window.pieces = 0;
    const count = (records) => (window.pieces += records.length);
    new MutationObserver(count).observe(document.getElementById("log"), { subtree: true, characterData: true });
  });
  await say(page, "Tell me a story about a <b>fox</b> and a lighthouse.");
  await until(page, () => document.querySelector("article.assistant small"));
  assert.equal(await text(page, "article.user .text"), "Tell me a story about a <b>fox</b> and a lighthouse.");
  assert.equal(await page.$("article b"), null, "text became HTML");
  const answer = await text(page, "article.assistant .text");
  assert.ok(answer.length > 0, "no answer");
  const pieces = await page.evaluate(() => window.pieces);
  assert.ok(pieces > 1, `the answer did not stream: it came in ${pieces} pieces`);
  assert.match(await text(page, "article.assistant small"), /^\d+ tokens, [\d.]+ tokens\/s, first after \d+ ms/);
  assert.equal(await page.$eval("#send", (node) => node.disabled), false);
}

async function stops(page) {
  await page.click("#clear");
  assert.equal(await page.$$eval("article", (all) => all.length), 0);
  await setSetting(page, "max-tokens", "");
  await say(page, "Tell me a long story");
  await until(page, () => document.querySelector("article.assistant .text")?.textContent.length > 0);
  await page.click("#stop");
  await until(page, () => document.querySelector("article.assistant small"));
  // A short answer may have been over before the click.
  assert.match(await text(page, "article.assistant small"), /tokens/);
}

async function tellsWhatIsWrong(page) {
  await page.click("#clear");
  await setSetting(page, "max-tokens", "100000000");
  await say(page, "hello");
  await until(page, () => document.querySelector("article.assistant .wrong"));
  assert.match(await text(page, "article.assistant .wrong"), /maximum context length/);
  await setSetting(page, "max-tokens", "8");
}

async function watchesTheEngine(page) {
  const number = async (id) => Number((await text(page, id)).replace(/\D/g, ""));
  await until(page, () => Number(document.getElementById("tokens-out").textContent.replace(/\D/g, "")) >= 24);
  assert.ok((await number("#steps")) > 0);
  assert.match(await text(page, "#running"), /^\d+ of \d+$/);
  assert.match(await text(page, "#blocks-text"), /^\d+ of \d+ blocks of \d+ tokens in use/);
  // Once nothing runs, what is left is cached.
  await until(page, () => document.querySelector("#blocks i.cached") && !document.querySelector("#blocks i.used"));
  assert.ok((await page.$$eval("#blocks i", (all) => all.length)) >= 24);
  assert.ok((await page.$eval("#spark-line", (line) => line.getAttribute("points"))).length > 0);
  assert.match(await text(page, "#model"), /\S+ · \d+\.\d+/);
}

async function asksForTheKey(page) {
  await until(page, () => !document.getElementById("key-form").hidden);
  await page.type("#key", key);
  await page.click("#key-form button");
  await until(page, () => document.getElementById("key-form").hidden);
}

const chromium = await browser();
try {
  const page = await chromium.newPage();
  const seen = watch(page);
  await page.goto(url, { waitUntil: "load" });
  if (key) {
    await asksForTheKey(page);
    // The browser itself reports the 401 that led to the question.
    seen.complaints = seen.complaints.filter((complaint) => !complaint.includes("401"));
  }
  for (const check of [chats, watchesTheEngine, stops, ...(key ? [] : [tellsWhatIsWrong])]) {
    await check(page);
    console.log(`${check.name} ... ok`);
  }
  const elsewhere = [...seen.addresses].filter((address) => !address.startsWith(`${url}/`) && !address.startsWith("data:"));
  assert.deepEqual(elsewhere, []);
  // As above, of the 400 that was asked for.
  assert.deepEqual(seen.complaints.filter((complaint) => !complaint.includes("400 (Bad Request)")), []);
} finally {
  await chromium.close();
}
