// Which conversations are there? Kept in this browser only, one entry each, and checked when they
// are read: another version of this page, or a person, may have written them.

const PREFIX = "pelton.conversation.";
const LAST = "pelton.last";

/** What a conversation asks of the model; an empty text leaves it to the server. */
export const PARAMETERS = {
  temperature: { label: "Temperature", min: 0, max: 2, step: 0.05, hint: "0 repeats itself" },
  top_p: { label: "Top p", min: 0.01, max: 1, step: 0.01, hint: "1 is all words" },
  top_k: { label: "Top k", min: 1, max: 1000, step: 1, hint: "of the likeliest words" },
  min_p: { label: "Min p", min: 0, max: 1, step: 0.01, hint: "share of the likeliest" },
  max_tokens: { label: "Longest answer", min: 1, max: 1000000, step: 1, hint: "in tokens" },
  seed: { label: "Seed", min: 0, max: 2147483647, step: 1, hint: "repeats an answer" },
  frequency_penalty: { label: "Frequency penalty", min: -2, max: 2, step: 0.1, hint: "0 is none" },
  presence_penalty: { label: "Presence penalty", min: -2, max: 2, step: 0.1, hint: "0 is none" },
};

export function freshConversation(like = null) {
  return {
    id: freshId(),
    title: "",
    changed: Date.now(),
    model: like?.model ?? "",
    system: like?.system ?? "",
    parameters: { ...(like?.parameters ?? {}) },
    messages: [],
  };
}

/** `randomUUID` exists on secure pages only, and this page may be asked for over a plain LAN. */
function freshId() {
  const numbers = crypto.getRandomValues(new Uint32Array(3));
  return [...numbers].map((number) => number.toString(36)).join("");
}

/** All that can be read, the latest first. */
export function loadConversations() {
  const found = [];
  try {
    for (let at = 0; at < localStorage.length; at += 1) {
      const key = localStorage.key(at);
      if (key?.startsWith(PREFIX)) {
        const conversation = checked(key.slice(PREFIX.length), localStorage.getItem(key));
        if (conversation !== null) {
          found.push(conversation);
        }
      }
    }
  } catch {
    // Storage is switched off: conversations last as long as the page.
  }
  return found.sort((one, other) => other.changed - one.changed);
}

export function loadConversation(id) {
  try {
    return checked(id, localStorage.getItem(PREFIX + id));
  } catch {
    return null;
  }
}

/** False where the browser has no room left or keeps nothing. */
export function saveConversation(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export function removeConversation(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // Nothing was kept.
  }
}

export function lastShown() {
  try {
    return sessionStorage.getItem(LAST);
  } catch {
    return null;
  }
}

export function rememberShown(id) {
  try {
    sessionStorage.setItem(LAST, id);
  } catch {
    // The first is shown next time.
  }
}

/** The id of a conversation that another tab has changed. */
export function changedElsewhere(event) {
  return event.key?.startsWith(PREFIX) ? event.key.slice(PREFIX.length) : null;
}

function checked(id, json) {
  let raw;
  try {
    raw = JSON.parse(json);
  } catch {
    return null;
  }
  if (raw === null || typeof raw !== "object" || !Array.isArray(raw.messages)) {
    return null;
  }
  return {
    id,
    title: text(raw.title),
    changed: Number.isFinite(raw.changed) ? raw.changed : 0,
    model: text(raw.model),
    system: text(raw.system),
    parameters: checkedParameters(raw.parameters),
    messages: checkedMessages(raw.messages),
  };
}

function text(value) {
  return typeof value === "string" ? value : "";
}

function checkedParameters(raw) {
  const found = {};
  for (const name of [...Object.keys(PARAMETERS), "stop"]) {
    const value = raw?.[name];
    if (typeof value === "string" && value !== "") {
      found[name] = value;
    }
  }
  return found;
}

function checkedMessage(raw) {
  if (raw?.role === "user") {
    const message = { role: "user", text: text(raw.text), files: checkedFiles(raw.files) };
    if (!Array.isArray(raw.versions) || raw.versions.length === 0) {
      return message;
    }
    const versions = raw.versions.map((version) => ({
      text: text(version?.text),
      files: checkedFiles(version?.files),
      later: checkedMessages(version?.later),
    }));
    return { ...message, versions, shown: checkedPlace(raw.shown, versions) };
  }
  if (raw?.role !== "assistant" || !Array.isArray(raw.answers) || raw.answers.length === 0) {
    return null;
  }
  const answers = raw.answers.map((answer) => ({
    text: text(answer?.text),
    thinking: text(answer?.thinking),
    model: text(answer?.model),
    note: text(answer?.note),
    ended: text(answer?.ended) || "stopped",
    later: checkedMessages(answer?.later),
  }));
  return { role: "assistant", answers, shown: checkedPlace(raw.shown, answers) };
}

function checkedMessages(raw) {
  const list = Array.isArray(raw) ? raw : [];
  return list.map(checkedMessage).filter((message) => message !== null);
}

function checkedFiles(raw) {
  const files = Array.isArray(raw) ? raw : [];
  return files.map((file) => ({ name: text(file?.name), text: text(file?.text) }));
}

function checkedPlace(raw, list) {
  return Math.min(Math.max(Number.isInteger(raw) ? raw : 0, 0), list.length - 1);
}

/** The messages as the API takes them. */
export function toRequest(conversation, messages) {
  const sent = conversation.system.trim() === ""
    ? []
    : [{ role: "system", content: conversation.system }];
  for (const message of messages) {
    const content = message.role === "user" ? userText(message) : shownAnswer(message).text;
    sent.push({ role: message.role, content });
  }
  const body = { model: conversation.model || "default", messages: sent };
  for (const name of Object.keys(PARAMETERS)) {
    const value = Number.parseFloat(conversation.parameters[name] ?? "");
    if (Number.isFinite(value)) {
      body[name] = value;
    }
  }
  const stop = (conversation.parameters.stop ?? "").split("\n").filter((line) => line !== "");
  return stop.length === 0 ? body : { ...body, stop };
}

export function shownAnswer(message) {
  return message.answers[message.shown];
}

/** Files stand before the words, each in a fence that is longer than any in it. */
function userText(message) {
  const parts = message.files.map((file) => {
    const longest = (file.text.match(/`{3,}/g) ?? []).reduce((most, run) => {
      return Math.max(most, run.length);
    }, 2);
    const fence = "`".repeat(longest + 1);
    return `File: ${file.name}\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...parts, message.text].filter((part) => part !== "").join("\n\n");
}
