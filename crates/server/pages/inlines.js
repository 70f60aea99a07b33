// What does a line of Markdown say? Emphasis, code, links, maths and breaks, as a tree of data.
//
// Each delimiter that is seen is remembered by its kind, and a closer looks only at the last of its
// kind; a closing sign that was once looked for in vain is not looked for again. So the time is
// linear in the text, whatever it says.

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const NESTING_MAX = 24;

/** Nodes: `text`, `code`, `maths`, `break`, and with children `strong`, `em`, `del` and `link`. */
export function inlines(text) {
  return new Scanner(text).run();
}

class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    /** Nodes so far; an open delimiter is a node of type `open`. */
    this.nodes = [];
    /** Places in `nodes` of open delimiters, by their sign. */
    this.opened = new Map();
    /** Signs that do not come again behind a place. */
    this.absent = new Map();
    this.letters = "";
  }

  run() {
    while (this.at < this.text.length) {
      const letter = this.text[this.at];
      const read = READERS[letter];
      if (read === undefined || !read(this)) {
        this.letters += letter;
        this.at += 1;
      }
    }
    this.flush();
    return this.nodes.map((node) => (node.type === "open" ? plain(node.sign) : node));
  }

  flush() {
    if (this.letters !== "") {
      this.nodes.push(plain(this.letters));
      this.letters = "";
    }
  }

  push(node) {
    this.flush();
    this.nodes.push(node);
  }

  /** The place of `sign` at or behind `from`, or -1. */
  find(sign, from) {
    const known = this.absent.get(sign);
    if (known !== undefined && from >= known) {
      return -1;
    }
    const at = this.text.indexOf(sign, from);
    if (at < 0) {
      this.absent.set(sign, from);
    }
    return at;
  }

  open(sign) {
    this.flush();
    const places = this.opened.get(sign) ?? [];
    places.push(this.nodes.length);
    this.opened.set(sign, places);
    this.nodes.push({ type: "open", sign });
  }

  /** Makes one node of all behind the last open `sign`; false where there is none. */
  close(sign, make) {
    const places = this.opened.get(sign) ?? [];
    let start = places.pop();
    // Some were swallowed by what closed around them.
    while (start !== undefined && !this.isOpen(start, sign)) {
      start = places.pop();
    }
    if (start === undefined) {
      return false;
    }
    this.flush();
    if (start === this.nodes.length - 1) {
      places.push(start);
      return false;
    }
    const inside = this.nodes.splice(start);
    const children = inside.slice(1).map((node) => {
      return node.type === "open" ? plain(node.sign) : node;
    });
    const depth = 1 + deepest(children);
    this.nodes.push(depth > NESTING_MAX ? plain(words(children)) : { ...make(children), depth });
    return true;
  }

  isOpen(at, sign) {
    const node = this.nodes[at];
    return node !== undefined && node.type === "open" && node.sign === sign;
  }
}

function plain(text) {
  return { type: "text", text };
}

function deepest(nodes) {
  return nodes.reduce((most, node) => Math.max(most, node.depth ?? 0), 0);
}

/** The text of nodes without their form. */
export function words(nodes) {
  return nodes.map((node) => node.text ?? (node.children ? words(node.children) : "\n")).join("");
}

const READERS = {
  "\\": escape,
  "`": code,
  "$": dollars,
  "\n": lineBreak,
  "*": emphasis,
  "_": emphasis,
  "~": strike,
  "[": (scanner) => {
    scanner.open("[");
    scanner.at += 1;
    return true;
  },
  "]": link,
  "!": image,
  "<": angle,
  "h": bareLink,
};

function escape(scanner) {
  const { text, at } = scanner;
  const next = text[at + 1];
  if (next === "(" || next === "[") {
    const close = next === "(" ? "\\)" : "\\]";
    const end = scanner.find(close, at + 2);
    if (end > at + 2) {
      scanner.push({ type: "maths", text: text.slice(at + 2, end), isBlock: next === "[" });
      scanner.at = end + 2;
      return true;
    }
  }
  if (next === "\n") {
    scanner.push({ type: "break" });
  } else if (next !== undefined && PUNCTUATION.test(next)) {
    scanner.letters += next;
  } else {
    return false;
  }
  scanner.at += 2;
  return true;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) {
    end += 1;
  }
  return end - at;
}

function code(scanner) {
  const { text, at } = scanner;
  const length = runLength(text, at);
  const fence = "`".repeat(length);
  let end = scanner.find(fence, at + length);
  while (end >= 0 && runLength(text, end) !== length) {
    end = scanner.find(fence, end + runLength(text, end));
  }
  if (end < 0) {
    scanner.absent.set(fence, at);
    scanner.letters += fence;
    scanner.at += length;
    return true;
  }
  const inside = text.slice(at + length, end).replace(/\n/g, " ");
  const isPadded = /^ .*[^ ].* $/.test(inside);
  scanner.push({ type: "code", text: isPadded ? inside.slice(1, -1) : inside });
  scanner.at = end + length;
  return true;
}

/** `$x$` and `$$x$$`, but not prices: no space inside the signs, no digit behind the last. */
function dollars(scanner) {
  const { text, at } = scanner;
  const isBlock = text[at + 1] === "$";
  const sign = isBlock ? "$$" : "$";
  const start = at + sign.length;
  const end = scanner.find(sign, start);
  if (end <= start) {
    scanner.letters += sign;
    scanner.at = start;
    return true;
  }
  const inside = text.slice(start, end);
  const isPrice = !isBlock && (/^\s|\s$/.test(inside) || /\d/.test(text[end + 1] ?? ""));
  if (isPrice || inside.includes("\n\n")) {
    return false;
  }
  scanner.push({ type: "maths", text: inside, isBlock });
  scanner.at = end + sign.length;
  return true;
}

function lineBreak(scanner) {
  const { text, at } = scanner;
  let spaces = 0;
  while (text[at - 1 - spaces] === " ") {
    spaces += 1;
  }
  if (spaces > 0) {
    scanner.letters = scanner.letters.slice(0, -spaces);
    scanner.flush();
  }
  if (spaces >= 2) {
    scanner.push({ type: "break" });
  } else {
    scanner.letters += "\n";
  }
  scanner.at += 1;
  return true;
}

function emphasis(scanner) {
  const { text, at } = scanner;
  const sign = text[at];
  const length = runLength(text, at);
  if (length > 3) {
    scanner.letters += text.slice(at, at + length);
    scanner.at += length;
    return true;
  }
  const [before, after] = [text[at - 1] ?? " ", text[at + length] ?? " "];
  const { mayOpen, mayClose } = flanks(sign, before, after);
  let left = length;
  while (mayClose && left > 0) {
    const [closer, type] = left >= 2 ? [sign.repeat(2), "strong"] : [sign, "em"];
    const isClosed = scanner.close(closer, (children) => ({ type, children }));
    const isSingle = !isClosed && left === 3
      && scanner.close(sign, (children) => ({ type: "em", children }));
    if (!isClosed && !isSingle) {
      break;
    }
    left -= isClosed ? closer.length : 1;
  }
  if (left > 0 && mayOpen) {
    for (const part of left === 3 ? [sign, sign.repeat(2)] : [sign.repeat(left)]) {
      scanner.open(part);
    }
  } else {
    scanner.letters += sign.repeat(left);
  }
  scanner.at += length;
  return true;
}

/** CommonMark's left- and right-flanking runs; `_` inside a word is a letter. */
function flanks(sign, before, after) {
  const isSpace = (letter) => /\s/.test(letter);
  const isSign = (letter) => /[\p{P}\p{S}]/u.test(letter);
  const left = !isSpace(after) && (!isSign(after) || isSpace(before) || isSign(before));
  const right = !isSpace(before) && (!isSign(before) || isSpace(after) || isSign(after));
  if (sign === "*") {
    return { mayOpen: left, mayClose: right };
  }
  return {
    mayOpen: left && (!right || isSign(before)),
    mayClose: right && (!left || isSign(after)),
  };
}

function strike(scanner) {
  if (runLength(scanner.text, scanner.at) !== 2) {
    return false;
  }
  if (!scanner.close("~~", (children) => ({ type: "del", children }))) {
    scanner.open("~~");
  }
  scanner.at += 2;
  return true;
}

/** An address, which may hold paired brackets, and a title that is not shown. */
const TARGET = new RegExp(
  String.raw`\(<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s(?:"[^"]*"|'[^']*'))?\)`,
  "y",
);
const TARGET_CHARS_MAX = 2048;

function link(scanner) {
  const { text, at } = scanner;
  if (text[at + 1] !== "(") {
    return false;
  }
  TARGET.lastIndex = 0;
  // Only so much is looked at, so that brackets without an end stay cheap.
  const found = TARGET.exec(text.slice(at + 1, at + 1 + TARGET_CHARS_MAX));
  if (found === null) {
    return false;
  }
  const href = safeUrl(found[1]);
  const make = (children) => {
    return { type: "link", href, target: found[1], children: unlinked(children) };
  };
  if (!scanner.close("[", make)) {
    return false;
  }
  scanner.at += 1 + found[0].length;
  return true;
}

/** A link inside a link is its text. */
function unlinked(children) {
  return children.flatMap((node) => {
    if (node.type === "link") {
      return node.children;
    }
    return node.children ? [{ ...node, children: unlinked(node.children) }] : [node];
  });
}

/** Images are never fetched: their text stands for them, as a link. */
function image(scanner) {
  if (scanner.text[scanner.at + 1] !== "[") {
    return false;
  }
  scanner.at += 1;
  return true;
}

/** `<https://...>`; any other angle is a letter. */
function angle(scanner) {
  const end = scanner.find(">", scanner.at);
  if (end < 0 || end - scanner.at > TARGET_CHARS_MAX) {
    return false;
  }
  const target = scanner.text.slice(scanner.at + 1, end);
  const href = /^[a-z]+:[^\s<]+$/i.test(target) ? safeUrl(target) : null;
  if (href === null) {
    return false;
  }
  scanner.push({ type: "link", href, target, children: [plain(target)] });
  scanner.at = end + 1;
  return true;
}

const BARE = /https?:\/\/[^\s<>"'`\\^{}|]{1,2000}/y;

function bareLink(scanner) {
  BARE.lastIndex = scanner.at;
  const found = BARE.exec(scanner.text);
  const before = scanner.text[scanner.at - 1] ?? " ";
  if (found === null || /[\p{L}\p{N}]/u.test(before) || scanner.opened.get("[")?.length > 0) {
    return false;
  }
  // What ends a sentence is not of the address.
  const target = found[0].replace(/[.,;:!?)\]*_]+$/, "");
  const href = safeUrl(target);
  if (href === null) {
    return false;
  }
  scanner.push({ type: "link", href, target, children: [plain(target)] });
  scanner.at += target.length;
  return true;
}

/** The address if following it can only open a page or a letter; null otherwise. */
export function safeUrl(target) {
  // Browsers drop tabs and line ends in addresses, and spaces and controls before them.
  if (/[\u0000-\u0020\u007f]/.test(target)) {
    return null;
  }
  try {
    const url = new URL(target);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
