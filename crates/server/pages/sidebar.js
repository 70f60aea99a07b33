// Which conversations are there to choose from? A list with a search; on a phone, a drawer.

import { byId, element, iconButton } from "./dom.js";

const NARROW = matchMedia("(max-width: 800px)");

export class Sidebar {
  constructor(does) {
    this.does = does;
    this.node = byId("sidebar");
    byId("new-chat").addEventListener("click", () => does.fresh());
    byId("search").addEventListener("input", () => this.draw(this.conversations, this.shown));
    byId("open-sidebar").addEventListener("click", () => this.open());
    byId("close-sidebar").addEventListener("click", () => this.close());
    byId("veil").addEventListener("click", () => this.close());
    this.node.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen) {
        event.stopPropagation();
        this.close();
      }
    });
    NARROW.addEventListener("change", () => this.set(false));
    this.set(false);
  }

  open() {
    this.set(true);
    byId("close-sidebar").focus();
  }

  close() {
    if (this.isOpen) {
      this.set(false);
      byId("open-sidebar").focus();
    }
  }

  set(isOpen) {
    this.isOpen = isOpen && NARROW.matches;
    this.node.classList.toggle("open", this.isOpen);
    // Out of sight is out of reach of the keyboard; behind the drawer, so is the rest.
    this.node.inert = NARROW.matches && !this.isOpen;
    document.querySelector("main").inert = this.isOpen;
    byId("veil").hidden = !this.isOpen;
    byId("open-sidebar").setAttribute("aria-expanded", String(this.isOpen));
  }

  draw(conversations, shown) {
    [this.conversations, this.shown] = [conversations, shown];
    const wanted = byId("search").value.trim().toLowerCase();
    const found = conversations.filter((conversation) => matches(conversation, wanted));
    byId("conversations").replaceChildren(...found.map((conversation) => this.item(conversation)));
    byId("no-conversations").hidden = found.length > 0 || wanted === "";
  }

  item(conversation) {
    const title = conversation.title || "New chat";
    const isShown = conversation.id === this.shown;
    const current = isShown ? "true" : null;
    const attributes = { type: "button", class: "conversation", title, "aria-current": current };
    const open = element("button", attributes, title);
    open.addEventListener("click", () => {
      this.does.show(conversation.id);
      this.close();
    });
    const item = element("li", {}, open,
      iconButton("edit", `Rename ${title}`, () => this.rename(item, conversation)),
      iconButton("remove", `Delete ${title}`, () => this.remove(conversation)));
    return item;
  }

  rename(item, conversation) {
    const field = element("input", { class: "rename", "aria-label": "Title" });
    field.value = conversation.title;
    let isOver = false;
    const done = (isKept) => {
      // A field that goes loses the focus, which would end it a second time.
      if (isOver) {
        return;
      }
      isOver = true;
      const title = field.value.trim();
      if (isKept && title !== "") {
        this.does.rename(conversation.id, title);
      } else {
        this.draw(this.conversations, this.shown);
      }
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        event.stopPropagation();
        done(event.key === "Enter");
      }
    });
    field.addEventListener("blur", () => done(true));
    item.replaceChildren(field);
    field.select();
  }

  remove(conversation) {
    const dialog = byId("sure");
    byId("sure-title").textContent = `Delete \u201c${conversation.title || "New chat"}\u201d?`;
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "yes") {
        this.does.remove(conversation.id);
      }
    }, { once: true });
    dialog.showModal();
  }
}

function matches(conversation, wanted) {
  if (wanted === "" || conversation.title.toLowerCase().includes(wanted)) {
    return true;
  }
  return conversation.messages.some((message) => {
    const isQuestion = message.role === "user";
    const texts = isQuestion ? [message.text] : message.answers.map((answer) => answer.text);
    return texts.some((text) => text.toLowerCase().includes(wanted));
  });
}
