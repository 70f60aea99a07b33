// What is asked of the model besides the words? A dialog over one conversation's settings.

import { byId, element } from "./dom.js";
import { PARAMETERS } from "./store.js";

export class SettingsDialog {
  constructor(changed) {
    this.dialog = byId("settings");
    this.fields = new Map();
    for (const [name, about] of Object.entries(PARAMETERS)) {
      const { label, min, max, step, hint } = about;
      const id = `parameter-${name}`;
      const attributes = { id, type: "number", min, max, step, inputmode: "decimal" };
      const input = element("input", { ...attributes, placeholder: "server's" });
      const said = element("span", {}, label, " ", element("small", { class: "soft" }, hint));
      byId("parameters").append(element("label", { class: "field", for: id }, said, input));
      this.fields.set(name, input);
    }
    this.fields.set("stop", byId("stop-texts"));
    this.dialog.addEventListener("close", () => {
      this.read();
      changed();
    });
    byId("reset-settings").addEventListener("click", () => {
      for (const input of this.fields.values()) {
        input.value = "";
      }
    });
    // A click beside the dialog closes it, as people expect.
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) {
        this.dialog.close();
      }
    });
  }

  open(conversation) {
    this.conversation = conversation;
    byId("system").value = conversation.system;
    for (const [name, input] of this.fields) {
      input.value = conversation.parameters[name] ?? "";
    }
    this.dialog.showModal();
  }

  read() {
    const found = {};
    for (const [name, input] of this.fields) {
      if (input.value !== "" && input.checkValidity()) {
        found[name] = input.value;
      }
    }
    this.conversation.parameters = found;
    this.conversation.system = byId("system").value;
  }
}
