// What does the server say? Requests to this page's own server, and their troubles in words.

const KEY = "pelton.key";

/** The key that is sent, or an empty text. */
export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
  } catch {
    return memoryKey;
  }
}

let memoryKey = "";

/** Keeps a key until the tab is closed, or in this browser for good. */
export function setApiKey(key, isKept) {
  memoryKey = key;
  try {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (key !== "") {
      (isKept ? localStorage : sessionStorage).setItem(KEY, key);
    }
  } catch {
    // Without storage it lasts as long as the page.
  }
}

/** Why a request was not answered. `kind` decides what the page offers. */
export class Trouble extends Error {
  constructor(kind, message, retrySeconds = null) {
    super(message);
    this.kind = kind;
    this.retrySeconds = retrySeconds;
  }
}

export async function ask(path, { body = null, signal = null, headers = {} } = {}) {
  const key = apiKey();
  const all = { ...headers };
  if (key !== "") {
    all.authorization = `Bearer ${key}`;
  }
  if (body !== null) {
    all["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers: all,
      body: body === null ? null : JSON.stringify(body),
      signal,
      cache: "no-store",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Trouble("network", "The server cannot be reached. It may have stopped.");
  }
  if (!response.ok) {
    throw await troubleOf(response);
  }
  return response;
}

async function troubleOf(response) {
  let said = "";
  try {
    const body = await response.json();
    said = String(body.error?.message ?? body.error ?? "");
  } catch {
    said = response.statusText;
  }
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const retrySeconds = Number.isFinite(wait) ? Math.max(wait, 1) : null;
  return inWords(response.status, said, retrySeconds);
}

export function inWords(status, said, retrySeconds) {
  const text = sentence(said);
  switch (status) {
    case 401:
      return new Trouble("key", `This server asks for an API key. ${text}`);
    case 403:
      return new Trouble("refused", `This is not allowed. ${text}`);
    case 404:
      return new Trouble("refused", `This was not found. ${text}`);
    case 413:
      return new Trouble("refused", `The message is too long for this server. ${text}`);
    case 429:
      return new Trouble("busy", `The server is busy. ${text}`, retrySeconds ?? 1);
    case 503:
      return new Trouble("unavailable", `No answer can be given now. ${text}`, retrySeconds ?? 2);
    case 504:
      return new Trouble("late", `The time for this answer ran out. ${text}`);
    default:
      return status >= 500
        ? new Trouble("failed", `The server failed on this answer. ${text}`)
        : new Trouble("refused", `The server did not accept this. ${text}`);
  }
}

/** The server's texts start small and end without a full stop. */
function sentence(text) {
  const trimmed = text.trim();
  if (trimmed === "") {
    return "";
  }
  // The name of a field stays as it is written.
  const isName = /^[a-z]+_/.test(trimmed);
  const first = isName ? trimmed : trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

export async function listModels(signal = null) {
  const response = await ask("/v1/models", { signal });
  const body = await response.json();
  return Array.isArray(body.data) ? body.data : [];
}

/**
 * Streams an answer. `heard` is told of each piece: `{text}`, `{thinking}`, `{usage}` or
 * `{finish}`.
 */
export async function streamChat(body, signal, heard) {
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask("/v1/chat/completions", { body: wanted, signal });
  let isDone = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      isDone = true;
      break;
    }
    hear(JSON.parse(data), heard);
  }
  if (!isDone) {
    throw new Trouble("network", "The connection broke before the answer was complete.");
  }
}

function hear(chunk, heard) {
  if (chunk.error) {
    const status = chunk.error.code === "deadline_exceeded" ? 504 : 500;
    throw inWords(status, String(chunk.error.message ?? ""), null);
  }
  const choice = chunk.choices?.[0];
  const thinking = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
  if (thinking) {
    heard({ thinking: String(thinking) });
  }
  if (choice?.delta?.content) {
    heard({ text: String(choice.delta.content) });
  }
  if (choice?.finish_reason) {
    heard({ finish: String(choice.finish_reason) });
  }
  if (chunk.usage) {
    heard({ usage: chunk.usage });
  }
}

/** The data of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length > 0) {
          yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        }
      }
    }
  } catch (error) {
    if (error instanceof TypeError) {
      throw new Trouble("network", "The connection broke before the answer was complete.");
    }
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
