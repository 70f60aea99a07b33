// What does a text in Markdown say? A tree of plain data, never markup: `render.js` makes nodes of
// it. Follows CommonMark and GitHub's tables where people and models use them; HTML is just text.
//
// The text is a model's, so it may be made to do harm: nothing here runs longer than a constant
// times its length, and nesting ends at `DEPTH_MAX`, below which all is plain text.

import { inlines } from "./inlines.js";

const DEPTH_MAX = 12;

const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MATHS_OPEN = /^ {0,3}(\$\$|\\\[)(.*)$/;

/** The blocks of `text`. Each has its `source`, by which an unchanged one is known again. */
export function parse(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [block, end] = depth < DEPTH_MAX ? blockAt(lines, at, depth) : paragraph(lines, at);
    block.source = lines.slice(at, end).join("\n");
    found.push(block);
    at = end;
  }
  return found;
}

function blockAt(lines, at, depth) {
  for (const read of [code, maths, heading, rule, quote, list, table]) {
    const result = read(lines, at, depth);
    if (result !== null) {
      return result;
    }
  }
  return paragraph(lines, at);
}

function code(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (open === null) {
    return null;
  }
  const [, indent, fence, info] = open;
  const close = new RegExp(`^ {0,3}${fence[0] === "`" ? "`" : "~"}{${fence.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) {
    end += 1;
  }
  const body = lines.slice(at + 1, end).map((line) => withoutIndent(line, indent.length));
  // While an answer is being written, its last block is not closed yet.
  const isClosed = end < lines.length;
  const language = info.trim().split(/\s/)[0].slice(0, 40);
  return [{ type: "code", language, text: body.join("\n") }, end + (isClosed ? 1 : 0)];
}

function withoutIndent(line, count) {
  let at = 0;
  while (at < count && line[at] === " ") {
    at += 1;
  }
  return line.slice(at);
}

/** Longer ones are no formulas; and what never closes is not looked through again and again. */
const MATHS_LINES_MAX = 100;

function maths(lines, at) {
  const open = MATHS_OPEN.exec(lines[at]);
  if (open === null) {
    return null;
  }
  const close = open[1] === "$$" ? "$$" : "\\]";
  const parts = [];
  let rest = open[2];
  let end = at + 1;
  for (;;) {
    const stop = rest.indexOf(close);
    if (stop >= 0) {
      // With words behind it, it was not a block of its own.
      if (rest.slice(stop + 2).trim() !== "") {
        return null;
      }
      parts.push(rest.slice(0, stop));
      return [{ type: "maths", text: parts.join("\n") }, end];
    }
    parts.push(rest);
    if (end >= lines.length || end - at > MATHS_LINES_MAX || lines[end].trim() === "") {
      return null;
    }
    rest = lines[end];
    end += 1;
  }
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (found === null) {
    return null;
  }
  const words = (found[2] ?? "").trim();
  let end = words.length;
  while (words[end - 1] === "#") {
    end -= 1;
  }
  const isClosed = end === 0 || words[end - 1] === " ";
  const text = isClosed ? words.slice(0, end).trimEnd() : words;
  return [{ type: "heading", level: found[1].length, children: inlines(text) }, at + 1];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [{ type: "rule" }, at + 1] : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) {
    return null;
  }
  let end = at;
  const inner = [];
  // A paragraph may go on without the sign, until something else begins.
  while (end < lines.length) {
    const isMarked = QUOTE.test(lines[end]);
    if (!isMarked && (lines[end].trim() === "" || startsBlock(lines[end]))) {
      break;
    }
    inner.push(isMarked ? lines[end].replace(QUOTE, "") : lines[end]);
    end += 1;
  }
  return [{ type: "quote", children: blocks(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (first === null) {
    return null;
  }
  const kind = markerKind(first[2]);
  const items = [];
  let isLoose = false;
  let end = at;
  while (end < lines.length) {
    const open = ITEM.exec(lines[end]);
    if (open === null || markerKind(open[2]) !== kind || RULE.test(lines[end])) {
      break;
    }
    const [item, next] = itemAt(lines, end, open, depth);
    items.push(item);
    isLoose ||= item.isLoose;
    end = next;
    const after = skipBlank(lines, end);
    if (after < lines.length && after > end && sameList(lines[after], kind)) {
      isLoose = true;
      end = after;
    }
  }
  const start = kind === "-" ? null : Number.parseInt(first[2], 10);
  return [{ type: "list", start, isLoose, items }, end];
}

function sameList(line, kind) {
  const open = ITEM.exec(line);
  return open !== null && markerKind(open[2]) === kind && !RULE.test(line);
}

/** `-` for bullets of any sort, which models mix; else the sign behind the number. */
function markerKind(marker) {
  return /^\d/.test(marker) ? marker.at(-1) : "-";
}

function skipBlank(lines, at) {
  while (at < lines.length && lines[at].trim() === "") {
    at += 1;
  }
  return at;
}

function itemAt(lines, at, open, depth) {
  const spaces = open[3].length > 4 || open[3] === "" ? 1 : open[3].length;
  const indent = open[1].length + open[2].length + spaces;
  const inner = [lines[at].slice(Math.min(indent, lines[at].length))];
  let end = at + 1;
  let isLoose = false;
  let wasBlank = false;
  while (end < lines.length) {
    const line = lines[end];
    const isBlank = line.trim() === "";
    // Models indent what belongs to an item by two or more, whatever the marker's width.
    const isInside = !isBlank && /^(?: {2,}|\t)/.test(line);
    if (!isBlank && !isInside && (wasBlank || startsBlock(line) || ITEM.test(line))) {
      break;
    }
    if (isInside && wasBlank) {
      isLoose = true;
    }
    inner.push(isInside ? dedent(line, indent) : line);
    wasBlank = isBlank;
    end += 1;
  }
  while (end > at + 1 && lines[end - 1].trim() === "") {
    end -= 1;
    inner.pop();
  }
  const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
  if (task !== null) {
    inner[0] = inner[0].slice(task[0].length);
  }
  const isDone = task === null ? null : task[1] !== " ";
  return [{ isDone, isLoose, children: blocks(inner, depth + 1) }, end];
}

function dedent(line, indent) {
  return withoutIndent(line.replace(/^\t/, "    "), indent);
}

/** Whether a line ends the paragraph before it. */
function startsBlock(line) {
  const item = ITEM.exec(line);
  // A number other than 1 in the middle of a sentence is no list.
  const isItem = item !== null && item[3] !== "" && /^(?:[-*+]|1[.)])/.test(item[2]);
  const others = [FENCE, HEADING, RULE, QUOTE];
  return isItem || others.some((pattern) => pattern.test(line));
}

const COLUMNS_MAX = 64;
const RULE_CHARS_MAX = 2000;

function table(lines, at) {
  const isTable = at + 1 < lines.length && lines[at].includes("|")
    && lines[at + 1].length <= RULE_CHARS_MAX && TABLE_RULE.test(lines[at + 1]);
  if (!isTable) {
    return null;
  }
  const head = cells(lines[at]);
  const rules = cells(lines[at + 1]);
  if (head.length !== rules.length || head.length > COLUMNS_MAX) {
    return null;
  }
  const aligns = rules.map((text) => alignOf(text));
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].trim() !== "" && lines[end].includes("|")) {
    const row = cells(lines[end]).slice(0, head.length);
    rows.push(row.map((text) => inlines(text)));
    end += 1;
  }
  return [{ type: "table", aligns, head: head.map((text) => inlines(text)), rows }, end];
}

function alignOf(text) {
  const [left, right] = [text.startsWith(":"), text.endsWith(":")];
  if (left && right) {
    return "center";
  }
  return right ? "right" : left ? "left" : null;
}

/** A bar parts two cells unless it is escaped or inside code. */
function cells(line) {
  const found = [];
  let cell = "";
  let inCode = false;
  const text = line.trim().replace(/^\|/, "");
  for (let at = 0; at < text.length; at += 1) {
    const letter = text[at];
    if (letter === "\\" && text[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (letter === "|" && !inCode) {
      found.push(cell.trim());
      cell = "";
    } else {
      inCode = letter === "`" ? !inCode : inCode;
      cell += letter;
    }
  }
  if (cell.trim() !== "") {
    found.push(cell.trim());
  }
  return found;
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && !startsBlock(lines[end])
    && !MATHS_OPEN.test(lines[end])) {
    end += 1;
  }
  const text = lines.slice(at, end).map((line) => line.replace(/^[ \t]+/, "")).join("\n");
  return [{ type: "paragraph", children: inlines(text) }, end];
}
