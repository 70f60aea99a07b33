// How does a conversation look? A list of messages with what can be done to each. A message is
// drawn anew only when it changes; a growing answer grows at its end.

import { versionsOf } from "./branches.js";
import { byId, element, icon, iconButton } from "./dom.js";
import { copyText, show } from "./render.js";
import { shownAnswer } from "./store.js";

/** Nearer to the end than this, the view follows what is written. */
const NEAR_PX = 80;

export class MessageList {
  constructor(does) {
    this.does = does;
    this.list = byId("messages");
    this.scroll = byId("scroll");
    this.isFollowing = true;
    this.items = [];
    const toEnd = byId("to-end");
    toEnd.append(icon("send"));
    toEnd.addEventListener("click", () => this.follow());
    this.scroll.addEventListener("scroll", () => this.scrolled(), { passive: true });
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    this.isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    byId("to-end").hidden = this.isFollowing;
  }

  follow() {
    this.isFollowing = true;
    this.scroll.scrollTop = this.scroll.scrollHeight;
    byId("to-end").hidden = true;
  }

  draw(conversation) {
    const isOther = this.conversation?.id !== conversation.id;
    this.conversation = conversation;
    this.items = conversation.messages.map((message, at) => {
      return message.role === "user" ? this.userItem(message, at) : this.answerItem(at);
    });
    this.list.replaceChildren(...this.items.map((item) => item.node));
    conversation.messages.forEach((message, at) => {
      if (message.role === "assistant") {
        this.redraw(at);
      }
    });
    if (isOther || this.isFollowing) {
      this.follow();
    }
  }

  userItem(message, at) {
    const files = message.files.map((file) => fileCard(file));
    const words = element("div", { class: "said" }, message.text);
    const edit = iconButton("edit", "Edit this message", () => this.openEditor(at));
    const copy = iconButton("copy", "Copy this message", (event) => {
      copyText(message.text, event.currentTarget);
    });
    const versions = versionsOf(message).length > 1 ? [this.versions(message, at)] : [];
    const actions = element("div", { class: "actions" }, versions, edit, copy);
    const name = element("h2", { class: "visually-hidden" }, "You");
    const bubble = message.text === "" ? [] : [words];
    const node = element("li", { class: "message user" }, name, files, bubble, actions);
    return { node };
  }

  openEditor(at) {
    const message = this.conversation.messages[at];
    const text = element("textarea", { rows: "3", "aria-label": "Your message" });
    text.value = message.text;
    const close = () => {
      const item = this.userItem(message, at);
      this.items[at].node.replaceWith(item.node);
      this.items[at] = item;
      item.node.querySelector("button")?.focus();
    };
    const submit = () => this.does.edit(at, text.value);
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        submit();
      }
    });
    const quiet = { type: "button", class: "button plain", onclick: close };
    const cancel = element("button", quiet, "Cancel");
    const send = element("button", { type: "submit", class: "button primary" }, "Send again");
    const note = element("p", { class: "soft" }, "What follows stays with the version before.");
    const foot = element("div", { class: "editor-foot" }, note, cancel, send);
    const onsubmit = (event) => {
      event.preventDefault();
      submit();
    };
    const form = element("form", { class: "editor", onsubmit }, text, foot);
    this.items[at].node.replaceChildren(form);
    text.focus();
  }

  answerItem(at) {
    const thought = element("div", { class: "thought text" });
    const thinking = element("details", { class: "thinking", hidden: true },
      element("summary", {}, "Thoughts"), thought);
    const body = element("div", { class: "text" });
    const status = element("p", { class: "status" });
    const trouble = element("div", { class: "trouble", role: "alert", hidden: true });
    const actions = element("div", { class: "actions" });
    const name = element("h2", { class: "visually-hidden" }, "Answer");
    const parts = [name, thinking, body, status, trouble, actions];
    const node = element("li", { class: "message assistant" }, parts);
    return { node, thinking, thought, body, status, trouble, actions, at };
  }

  /** Draws an answer, where it is shown, as it now is. */
  redrawAnswer(answer) {
    this.redraw(this.conversation.messages.findLastIndex((message) => {
      return message.role === "assistant" && message.answers.includes(answer);
    }));
  }

  /** Draws an answer as it now is. */
  redraw(at) {
    const item = this.items[at];
    const message = this.conversation.messages[at];
    if (item === undefined || message?.role !== "assistant") {
      return;
    }
    const answer = shownAnswer(message);
    item.node.setAttribute("aria-busy", answer.ended === "" ? "true" : "false");
    show(item.body, answer.text);
    item.thinking.hidden = answer.thinking === "";
    if (answer.thinking !== "") {
      show(item.thought, answer.thinking);
      item.thinking.classList.toggle("live", answer.ended === "" && answer.text === "");
    }
    const isWaiting = answer.ended === "" && answer.text === "";
    item.status.hidden = !isWaiting;
    const status = answer.thinking === "" ? answer.status : "Thinking";
    if (isWaiting && item.status.textContent !== status) {
      item.status.textContent = status;
    }
    item.node.classList.toggle("writing", answer.ended === "" && answer.text !== "");
    this.drawTrouble(item, answer, at);
    this.drawActions(item, message, answer, at);
    if (this.isFollowing) {
      this.scroll.scrollTop = this.scroll.scrollHeight;
    }
  }

  drawTrouble(item, answer, at) {
    if (item.shownTrouble === answer.trouble) {
      return;
    }
    item.shownTrouble = answer.trouble;
    clearInterval(item.countdown);
    item.trouble.hidden = answer.trouble === undefined;
    if (answer.trouble === undefined) {
      return;
    }
    const { kind, message, retrySeconds } = answer.trouble;
    const again = element("button", { type: "button", class: "button" }, icon("repeat"));
    const label = document.createTextNode("Try again");
    again.append(label);
    again.addEventListener("click", () => this.does.regenerate(at));
    const parts = [element("p", {}, message), again];
    if (kind === "key") {
      const onclick = () => this.does.askKey();
      parts.push(element("button", { type: "button", class: "button", onclick }, "Give a key"));
    }
    item.trouble.replaceChildren(...parts);
    if (retrySeconds !== null) {
      countDown(item, again, label, retrySeconds);
    }
  }

  drawActions(item, message, answer, at) {
    const { ended: how, note: told } = answer;
    const key = JSON.stringify([how, told, message.shown, message.answers.length]);
    if (item.shownActions === key) {
      return;
    }
    item.shownActions = key;
    if (answer.ended === "") {
      item.actions.replaceChildren();
      return;
    }
    const copy = iconButton("copy", "Copy this answer", (event) => {
      copyText(answer.text, event.currentTarget);
    });
    const again = iconButton("repeat", "Answer anew", () => this.does.regenerate(at));
    const ended = { stopped: "stopped", trouble: "not completed" }[how] ?? "";
    const note = [answer.model, told, ended].filter((part) => part !== "").join(" \u00b7 ");
    const versions = versionsOf(message).length > 1 ? [this.versions(message, at)] : [];
    const line = element("span", { class: "note soft" }, note);
    item.actions.replaceChildren(...versions, copy, again, line);
  }

  versions(message, at) {
    const { shown, role } = message;
    const { length } = versionsOf(message);
    const what = role === "user" ? "message" : "answer";
    const back = iconButton("left", `The ${what} before`, () => this.does.version(at, -1),
      { disabled: shown === 0 });
    const forth = iconButton("right", `The next ${what}`, () => this.does.version(at, 1),
      { disabled: shown === length - 1 });
    const place = element("span", {}, `${shown + 1} / ${length}`);
    return element("span", { class: "versions" }, back, place, forth);
  }
}

/** Tells how long it is until a new try makes sense; trying at once stays possible. */
function countDown(item, button, label, seconds) {
  let left = seconds;
  const tell = () => {
    label.data = left > 0 ? `Try again (room is expected in ${left} s)` : "Try again now";
    button.classList.toggle("primary", left <= 0);
    if (left <= 0) {
      clearInterval(item.countdown);
    }
    left -= 1;
  };
  tell();
  item.countdown = setInterval(tell, 1000);
}

function fileCard(file) {
  const size = `${Math.max(1, Math.round(file.text.length / 1024))} KB`;
  const summary = element("summary", {}, icon("attach"), element("span", {}, file.name),
    element("small", { class: "soft" }, size));
  return element("details", { class: "file-card" }, summary, element("pre", {}, file.text));
}
