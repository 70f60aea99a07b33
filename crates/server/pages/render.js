// How does the tree of a text look? As nodes, made one by one: what a model wrote can only ever
// become the text of a node, a class from a list of ours, or an address that `safeUrl` has passed.

import { element, icon } from "./dom.js";
import { highlight } from "./highlight.js";
import { parse } from "./markdown.js";
import { mathsNode } from "./maths.js";

/**
 * Shows `text` in `node`. Blocks whose source is as it was keep their nodes, so that an answer that
 * grows is drawn at its end only, and what a reader has selected stays selected.
 */
export function show(node, text) {
  const known = node.shownBlocks ?? [];
  const blocks = parse(text);
  let same = 0;
  while (same < known.length && same < blocks.length && isSame(known[same], blocks[same])) {
    same += 1;
  }
  for (const old of known.slice(same)) {
    old.node.remove();
  }
  const fresh = blocks.slice(same).map((block) => {
    return { type: block.type, source: block.source, node: blockNode(block) };
  });
  node.append(...fresh.map((block) => block.node));
  node.shownBlocks = [...known.slice(0, same), ...fresh];
}

function isSame(known, block) {
  return known.type === block.type && known.source === block.source;
}

const BLOCKS = {
  code: codeBlock,
  // An answer's headings stand below those of the page.
  heading: (block) => element(`h${Math.min(block.level + 2, 6)}`, {}, inlineNodes(block.children)),
  list,
  maths: (block) => element("div", { class: "maths-block" }, mathsNode(block.text, "block")),
  paragraph: (block) => element("p", {}, inlineNodes(block.children)),
  quote: (block) => element("blockquote", {}, block.children.map(blockNode)),
  rule: () => element("hr"),
  table,
};

function blockNode(block) {
  return BLOCKS[block.type](block);
}

function codeBlock(block) {
  const pieces = highlight(block.text, block.language).map(([kind, text]) => {
    return kind === null ? text : element("span", { class: `code-${kind}` }, text);
  });
  const copy = element("button", { type: "button", class: "copy-code" }, icon("copy"), "Copy");
  copy.addEventListener("click", () => copyText(block.text, copy));
  const name = element("span", {}, block.language || "text");
  const code = element("code", {}, pieces);
  // Wide code is scrolled, with the keyboard, too.
  const label = `Code, ${block.language || "text"}`;
  const frame = element("pre", { tabindex: "0", role: "region", "aria-label": label }, code);
  return element("div", { class: "code-block" }, element("div", {}, name, copy), frame);
}

/** Copies a text and says so on the button for a while. */
export async function copyText(text, button) {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    said = "Not allowed";
  }
  const before = [...button.childNodes];
  const label = button.getAttribute("aria-label");
  const drawing = icon(said === "Copied" ? "check" : "close");
  button.replaceChildren(drawing, ...(label === null ? [said] : []));
  button.setAttribute("aria-label", said);
  setTimeout(() => {
    button.replaceChildren(...before);
    if (label === null) {
      button.removeAttribute("aria-label");
    } else {
      button.setAttribute("aria-label", label);
    }
  }, 1500);
}

function list(block) {
  const items = block.items.map((item) => {
    const children = item.children.flatMap((child) => {
      const isTight = child.type === "paragraph" && !block.isLoose;
      return isTight ? inlineNodes(child.children) : [blockNode(child)];
    });
    if (item.isDone === null) {
      return element("li", {}, children);
    }
    const label = item.isDone ? "done" : "to do";
    const box = element("input", { type: "checkbox", disabled: true, "aria-label": label });
    box.checked = item.isDone;
    return element("li", { class: "task" }, box, children);
  });
  const start = block.start === 1 ? null : block.start;
  return block.start === null ? element("ul", {}, items) : element("ol", { start }, items);
}

function table(block) {
  const row = (tag, cells) => element("tr", {}, cells.map((cell, column) => {
    const align = block.aligns[column];
    const scope = tag === "th" ? "col" : null;
    return element(tag, { class: align && `align-${align}`, scope }, inlineNodes(cell));
  }));
  const head = element("thead", {}, row("th", block.head));
  const body = element("tbody", {}, block.rows.map((cells) => row("td", cells)));
  const attributes = { class: "table-frame", tabindex: "0", role: "region", "aria-label": "Table" };
  return element("div", attributes, element("table", {}, head, body));
}

const INLINES = {
  break: () => element("br"),
  code: (node) => element("code", {}, node.text),
  del: (node) => element("del", {}, inlineNodes(node.children)),
  em: (node) => element("em", {}, inlineNodes(node.children)),
  link,
  maths: (node) => mathsNode(node.text, node.isBlock ? "block" : "inline"),
  strong: (node) => element("strong", {}, inlineNodes(node.children)),
  text: (node) => node.text,
};

function inlineNodes(nodes) {
  return nodes.map((node) => INLINES[node.type](node));
}

/** Where a link goes is shown on hovering; what goes nowhere safe is text with its address. */
function link(node) {
  const children = inlineNodes(node.children);
  if (node.href === null) {
    const target = node.target === "" ? "" : ` (${node.target})`;
    return element("span", { class: "dead-link" }, children, target);
  }
  const attributes = { href: node.href, title: node.href, target: "_blank" };
  return element("a", { ...attributes, rel: "noopener noreferrer nofollow" }, children);
}
