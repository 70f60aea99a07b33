// The chat page: which conversation is shown, and what do its buttons do? Start here; `answering`
// runs answers, `messages` draws them, `composer` takes questions, `sidebar` lists conversations.

import { listModels, setApiKey, apiKey } from "./api.js";
import { Answering } from "./answering.js";
import { addWords, putAside, stepTo } from "./branches.js";
import { Composer } from "./composer.js";
import { byId, drawIcons, element, icon } from "./dom.js";
import { MessageList } from "./messages.js";
import { SettingsDialog } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";

class Chat {
  constructor() {
    this.conversations = store.loadConversations();
    this.models = [];
    this.answering = new Answering((...changed) => this.answerChanged(...changed));
    this.messages = new MessageList({
      edit: (at, text) => this.edit(at, text),
      regenerate: (at) => this.regenerate(at),
      version: (at, step) => this.showVersion(at, step),
      askKey: () => this.askKey(),
    });
    this.composer = new Composer({
      send: (text, files) => this.send(text, files),
      stop: () => this.answering.stop(this.shown.id),
      say: (text) => this.notice(text),
    });
    this.sidebar = new Sidebar({
      show: (id) => this.show(this.find(id)),
      fresh: () => this.fresh(),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
    });
    this.settings = new SettingsDialog(() => this.save(this.shown));
    this.show(this.find(store.lastShown()) ?? this.conversations[0] ?? store.freshConversation());
    this.wire();
    this.refreshModels();
    setInterval(() => this.refreshModels(), 15_000);
  }

  find(id) {
    return this.conversations.find((conversation) => conversation.id === id);
  }

  wire() {
    byId("model").addEventListener("change", (event) => {
      this.shown.model = event.target.value;
      this.save(this.shown);
    });
    byId("open-settings").addEventListener("click", () => this.settings.open(this.shown));
    byId("open-key").addEventListener("click", () => this.askKey());
    byId("export").addEventListener("click", () => exportConversation(this.shown));
    byId("key-form").addEventListener("submit", (event) => this.takeKey(event));
    byId("cancel-key").addEventListener("click", () => byId("key-dialog").close());
    byId("theme").addEventListener("click", () => dispatchEvent(new Event("themetoggle")));
    addEventListener("themechange", drawTheme);
    drawTheme();
    addEventListener("storage", (event) => this.changedElsewhere(event));
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("pagehide", () => this.answering.keepAll());
  }

  key(event) {
    const isOpen = document.querySelector("dialog[open]") !== null;
    const isTyping = /^(?:INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
    if (event.key === "Escape" && !isOpen && this.answering.isRunning(this.shown.id)) {
      this.answering.stop(this.shown.id);
    } else if (event.key === "O" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.fresh();
    } else if (event.key === "/" && !isTyping && !isOpen) {
      event.preventDefault();
      this.composer.focus();
    }
  }

  async refreshModels() {
    try {
      this.models = await listModels();
    } catch (trouble) {
      if (trouble.kind === "key") {
        this.notice("This server asks for an API key: give one under Settings.");
      } else if (this.models.length === 0) {
        this.notice(trouble.message);
      }
      return;
    }
    this.drawModels();
  }

  drawModels() {
    const select = byId("model");
    const chosen = this.shown.model || this.models[0]?.id || "";
    const options = this.models.map((model) => {
      const state = model.state === "ready" ? "" : ` (${stateInWords(model.state)})`;
      return element("option", { value: model.id }, model.id + state);
    });
    if (chosen !== "" && !this.models.some((model) => model.id === chosen)) {
      const gone = `${chosen} (not here)`;
      options.push(element("option", { value: chosen }, gone));
    }
    select.replaceChildren(...options);
    select.value = chosen;
  }

  show(conversation) {
    this.shown = conversation;
    store.rememberShown(conversation.id);
    document.title = conversation.title === "" ? "Pelton" : `${conversation.title} - Pelton`;
    byId("empty").hidden = conversation.messages.length > 0;
    byId("export").hidden = conversation.messages.length === 0;
    this.messages.draw(conversation, this.answering.isRunning(conversation.id));
    this.composer.running(this.answering.isRunning(conversation.id));
    this.sidebar.draw(this.conversations, conversation.id);
    this.drawModels();
  }

  fresh() {
    this.show(store.freshConversation(this.shown));
    this.sidebar.close();
    this.composer.focus();
  }

  save(conversation) {
    conversation.changed = Date.now();
    if (conversation.messages.length === 0 && conversation !== this.find(conversation.id)) {
      return;
    }
    this.conversations = [conversation,
      ...this.conversations.filter((other) => other.id !== conversation.id)];
    if (!store.saveConversation(conversation)) {
      this.notice("This browser has no room left or keeps nothing: the conversation will be gone "
        + "when the page is closed. Delete old ones, or save it as a file.");
    }
    this.sidebar.draw(this.conversations, this.shown.id);
  }

  rename(id, title) {
    const conversation = this.find(id);
    conversation.title = title;
    this.save(conversation);
    this.show(this.shown);
  }

  remove(id) {
    this.answering.stop(id);
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id);
    store.removeConversation(id);
    const isShown = this.shown.id === id;
    this.show(isShown ? this.conversations[0] ?? store.freshConversation() : this.shown);
  }

  changedElsewhere(event) {
    const id = store.changedElsewhere(event);
    if (id === null || this.answering.isRunning(id)) {
      return;
    }
    const fresh = store.loadConversation(id);
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id);
    if (fresh !== null) {
      this.conversations = [fresh, ...this.conversations];
    }
    if (this.shown.id === id && fresh !== null) {
      this.show(fresh);
    } else {
      this.sidebar.draw(this.conversations, this.shown.id);
    }
  }

  /** False while an answer is being written: the question stays where it was typed. */
  send(text, files) {
    if (this.answering.isRunning(this.shown.id)) {
      return false;
    }
    const conversation = this.shown;
    conversation.messages.push({ role: "user", text, files });
    if (conversation.title === "") {
      conversation.title = titleOf(text, files);
    }
    this.answer(conversation);
    return true;
  }

  edit(at, text) {
    const conversation = this.shown;
    this.answering.stop(conversation.id);
    addWords(conversation, at, text);
    this.answer(conversation);
  }

  regenerate(at) {
    const conversation = this.shown;
    this.answering.stop(conversation.id);
    putAside(conversation, at);
    this.answer(conversation, conversation.messages[at]);
  }

  showVersion(at, step) {
    this.answering.stop(this.shown.id);
    stepTo(this.shown, at, step);
    this.save(this.shown);
    this.show(this.shown);
  }

  /** Asks for an answer to all so far: a new one of `message`, or in a message of its own. */
  answer(conversation, message = null) {
    const model = byId("model").value;
    conversation.model = model;
    this.notice("");
    this.answering.start(conversation, message, this.models);
    this.save(conversation);
    this.show(conversation);
    this.messages.follow();
    byId("spoken").textContent = "The answer is being written.";
  }

  answerChanged(conversation, answer) {
    const isShown = conversation.id === this.shown.id;
    if (answer.ended !== "") {
      if (this.find(conversation.id)) {
        this.save(conversation);
      }
      if (isShown) {
        this.composer.running(false);
        byId("spoken").textContent = spokenEnd(answer);
      }
      if (answer.trouble?.kind === "key") {
        this.askKey();
      }
    }
    if (isShown) {
      this.messages.redrawAnswer(answer);
    }
  }

  askKey() {
    byId("key").value = apiKey();
    if (!byId("key-dialog").open) {
      byId("key-dialog").showModal();
    }
  }

  takeKey(event) {
    event.preventDefault();
    setApiKey(byId("key").value.trim(), byId("keep-key").checked);
    byId("key-dialog").close();
    this.notice("");
    this.refreshModels();
  }

  notice(text) {
    byId("notice").textContent = text;
    byId("notice").hidden = text === "";
  }
}

function spokenEnd(answer) {
  return answer.trouble ? answer.trouble.message : `The answer is complete: ${answer.text}`;
}

function stateInWords(state) {
  return { unloaded: "not loaded", unloading: "leaving" }[state] ?? state;
}

const TITLE_CHARS = 60;

function titleOf(text, files) {
  const first = text.trim().split("\n")[0] || files[0]?.name || "New chat";
  return first.length > TITLE_CHARS ? `${first.slice(0, TITLE_CHARS - 1).trimEnd()}\u2026` : first;
}

function drawTheme() {
  const isDark = document.documentElement.dataset.theme === "dark";
  byId("theme").replaceChildren(icon(isDark ? "light" : "dark"));
  byId("theme").setAttribute("aria-label", isDark ? "Light colors" : "Dark colors");
}

function exportConversation(conversation) {
  const json = JSON.stringify(conversation, null, 2);
  const href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  element("a", { href, download: `${name || "chat"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

drawIcons();
new Chat();
