// What does the person ask? A growing field, files of text beside it, and the two keys.

import { byId, element, icon, iconButton } from "./dom.js";

/** Files are sent as words of the prompt; more than this no context holds. */
const FILE_BYTES_MAX = 512 << 10;
const FILES_MAX = 10;
const ROWS_PX_MAX = 240;

export class Composer {
  constructor(does) {
    this.does = does;
    this.files = [];
    this.field = byId("question");
    this.field.addEventListener("input", () => this.grow());
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.field.addEventListener("paste", (event) => this.paste(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => does.stop());
    byId("attach").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", (event) => {
      this.take([...event.target.files]);
      event.target.value = "";
    });
    this.acceptDrops();
    for (const text of STARTERS) {
      const onclick = () => this.suggest(text);
      const starter = element("button", { type: "button", class: "button", onclick }, text);
      byId("starters").append(element("li", {}, starter));
    }
  }

  focus() {
    this.field.focus();
  }

  suggest(text) {
    this.field.value = text;
    this.grow();
    this.focus();
  }

  running(isRunning) {
    const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    if (hadFocus) {
      this.focus();
    }
  }

  key(event) {
    // While an input method composes a word, Enter chooses it.
    const isPlain = !event.shiftKey && !event.isComposing && event.keyCode !== 229;
    // On a phone Enter begins a line, for there is a button to send with.
    const isPhone = matchMedia("(pointer: coarse) and (max-width: 700px)").matches;
    if (event.key === "Enter" && isPlain && !isPhone) {
      event.preventDefault();
      this.send();
    }
  }

  grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, ROWS_PX_MAX)}px`;
  }

  send() {
    // The first line keeps its indentation: it may be code.
    const text = this.field.value.replace(/^(?:[^\S\n]*\n)+/, "").trimEnd();
    if (text === "" && this.files.length === 0) {
      return;
    }
    if (this.does.send(text, this.files)) {
      this.field.value = "";
      this.files = [];
      this.grow();
      this.drawFiles();
    }
  }

  paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length > 0) {
      event.preventDefault();
      this.take(files);
    }
  }

  acceptDrops() {
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (holdsFiles(event)) {
        event.preventDefault();
        document.body.classList.add("dropping");
      }
    });
    addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) {
        document.body.classList.remove("dropping");
      }
    });
    addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (holdsFiles(event)) {
        event.preventDefault();
        this.take([...event.dataTransfer.files]);
      }
    });
  }

  async take(files) {
    const problems = [];
    for (const file of files) {
      const problem = this.files.length >= FILES_MAX
        ? `a message takes ${FILES_MAX} files`
        : await this.takeOne(file);
      if (problem !== null) {
        problems.push(`${file.name} was not attached: ${problem}.`);
      }
    }
    if (problems.length > 0) {
      this.does.say(problems.join(" "));
    }
    this.drawFiles();
    this.focus();
  }

  async takeOne(file) {
    if (file.size > FILE_BYTES_MAX) {
      return `it has more than ${FILE_BYTES_MAX >> 10} KB`;
    }
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) {
        return "it is not a text";
      }
      this.files.push({ name: file.name, text });
      return null;
    } catch (error) {
      return error instanceof TypeError ? "it is not a text in UTF-8" : "it could not be read";
    }
  }

  drawFiles() {
    const chips = this.files.map((file, at) => {
      const remove = iconButton("close", `Remove ${file.name}`, () => {
        this.files.splice(at, 1);
        this.drawFiles();
        this.focus();
      });
      const name = element("span", { class: "file-name" }, file.name);
      return element("li", { class: "file" }, icon("attach"), name, remove);
    });
    byId("files").replaceChildren(...chips);
    byId("files").hidden = chips.length === 0;
  }
}

const STARTERS = [
  "Explain how rainbows form",
  "Write a haiku about rivers",
  "Sort a list of words in Python",
];
