// How is a formula in TeX's notation drawn? As MathML, which browsers lay out themselves. What is
// not known here is shown as it was written, so that nothing is left out in silence.

import { element } from "./dom.js";
import { ACCENTS, FONTS, FUNCTIONS, LARGE, SPACES, SYMBOLS } from "./maths_symbols.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const DEPTH_MAX = 24;
const CHARS_MAX = 4000;

/** A `math` node, or the source as code where it is no formula that can be drawn. */
export function mathsNode(source, display) {
  const text = source.trim();
  try {
    if (text.length > CHARS_MAX) {
      throw new NotDrawn("the formula is too long");
    }
    const reader = new Reader(text);
    const row = reader.row([]);
    reader.expectEnd();
    const math = make("math", { display, "aria-label": text }, row);
    return math;
  } catch (error) {
    if (!(error instanceof NotDrawn)) {
      throw error;
    }
    return element("code", { class: "maths-source", title: error.message }, text);
  }
}

class NotDrawn extends Error {}

function make(tag, attributes, ...children) {
  const node = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  node.append(...children.flat());
  return node;
}

const TOKEN = /\s+|\\[a-zA-Z]+\*?|\\[\s\S]|\d+(?:\.\d+)?|[\s\S]/uy;

class Reader {
  constructor(text) {
    this.tokens = [];
    TOKEN.lastIndex = 0;
    for (let found = TOKEN.exec(text); found !== null; found = TOKEN.exec(text)) {
      this.tokens.push(found[0]);
    }
    this.at = 0;
    this.depth = 0;
    this.font = null;
  }

  skipSpace() {
    while (/^\s/.test(this.tokens[this.at] ?? "")) {
      this.at += 1;
    }
  }

  peek() {
    this.skipSpace();
    return this.tokens[this.at];
  }

  take() {
    const token = this.peek();
    if (token === undefined) {
      throw new NotDrawn("the formula ends too soon");
    }
    this.at += 1;
    return token;
  }

  expect(wanted) {
    const token = this.take();
    if (token !== wanted) {
      throw new NotDrawn(`${token} stands where ${wanted} should`);
    }
  }

  expectEnd() {
    if (this.peek() !== undefined) {
      throw new NotDrawn(`${this.peek()} closes nothing`);
    }
  }

  nested(read) {
    this.depth += 1;
    if (this.depth > DEPTH_MAX) {
      throw new NotDrawn("the formula is nested too deeply");
    }
    const node = read();
    this.depth -= 1;
    return node;
  }

  /** What comes until one of `ends`, as one node. */
  row(ends) {
    return this.nested(() => {
      const nodes = [];
      for (;;) {
        const token = this.peek();
        if (token === undefined || ends.includes(token) || CLOSERS.has(token)) {
          break;
        }
        nodes.push(this.scripted());
      }
      return nodes.length === 1 ? nodes[0] : make("mrow", {}, nodes);
    });
  }

  /** An atom with what stands above and below it. */
  scripted() {
    let [base, isLarge] = this.nested(() => this.atom());
    let [below, above] = [null, null];
    for (;;) {
      const token = this.peek();
      if (token === "_" && below === null) {
        this.take();
        below = this.argument();
      } else if (token === "^" && above === null) {
        this.take();
        above = this.argument();
      } else if (token === "'" && above === null) {
        above = this.primes();
      } else if (token === "\\limits" || token === "\\nolimits") {
        this.take();
        isLarge = token === "\\limits";
      } else {
        break;
      }
    }
    return attach(base, below, above, isLarge);
  }

  primes() {
    let marks = "";
    while (this.peek() === "'") {
      this.take();
      marks += "\u2032";
    }
    return make("mo", {}, marks);
  }

  /** A group in braces, or the next single thing. */
  argument() {
    if (this.peek() === "{") {
      this.take();
      const node = this.row(["}"]);
      this.expect("}");
      return node;
    }
    return this.nested(() => {
      // `x^12` raises the 1 only.
      const token = this.peek() ?? "";
      if (/^\d\d/.test(token)) {
        this.tokens.splice(this.at, 1, token[0], token.slice(1));
      }
      return this.atom()[0];
    });
  }

  /** One thing, and whether its scripts stand above and below it. */
  atom() {
    if (this.peek() === "{") {
      return [this.argument(), false];
    }
    const token = this.take();
    if (token.startsWith("\\")) {
      return this.command(token.slice(1));
    }
    if (/^\d/.test(token)) {
      return [make("mn", {}, this.styled(token)), false];
    }
    if (/^\p{L}/u.test(token)) {
      const isUpright = this.font !== null && this.font !== "italic";
      const upright = isUpright ? { mathvariant: "normal" } : {};
      return [make("mi", upright, this.styled(token)), false];
    }
    if (token === "^" || token === "_" || token === "#") {
      throw new NotDrawn(`${token} stands alone`);
    }
    const signs = { "-": "\u2212", "*": "\u2217", "~": "\u00a0" };
    return [make("mo", { stretchy: "false" }, signs[token] ?? token), false];
  }

  command(name) {
    if (Object.hasOwn(COMMANDS, name)) {
      return [COMMANDS[name](this), false];
    }
    if (Object.hasOwn(LARGE, name)) {
      return [make("mo", {}, LARGE[name]), !name.endsWith("int")];
    }
    if (FUNCTIONS.has(name)) {
      const hasLimits = /^(?:lim|max|min|sup|inf|det|gcd|Pr|arg)/.test(name);
      return [make("mi", {}, name.replace(/^(lim|arg)(?=.)/, "$1\u2009")), hasLimits];
    }
    if (Object.hasOwn(SYMBOLS, name)) {
      const [tag, letter] = SYMBOLS[name];
      const fixed = tag === "mo" ? { stretchy: "false" } : {};
      return [make(tag, fixed, letter), false];
    }
    if (Object.hasOwn(SPACES, name)) {
      return [make("mspace", { width: SPACES[name] }), false];
    }
    if (Object.hasOwn(ACCENTS, name)) {
      const [letter, place] = ACCENTS[name];
      const isAccent = place === "mover" ? { accent: "true" } : { accentunder: "true" };
      return [make(place, isAccent, this.argument(), make("mo", {}, letter)), false];
    }
    if (Object.hasOwn(FONTS, name)) {
      return [this.inFont(FONTS[name]), false];
    }
    throw new NotDrawn(`\\${name} is not known here`);
  }

  inFont(font) {
    const before = this.font;
    this.font = font;
    const node = this.argument();
    this.font = before;
    return node;
  }

  /** Letters of another alphabet: browsers know one `mathvariant` only. */
  styled(text) {
    const alphabet = ALPHABETS[this.font];
    return alphabet === undefined ? text : [...text].map(alphabet).join("");
  }

  /** The raw text of a group, spaces kept. */
  rawGroup() {
    this.expect("{");
    let text = "";
    let open = 1;
    while (this.at < this.tokens.length) {
      const token = this.tokens[this.at];
      this.at += 1;
      open += token === "{" ? 1 : token === "}" ? -1 : 0;
      if (open === 0) {
        return text;
      }
      text += token.replace(/^\\([^a-zA-Z])/, "$1");
    }
    throw new NotDrawn("a brace is not closed");
  }

  delimiter() {
    const token = this.take();
    if (token === ".") {
      return "";
    }
    const name = token.slice(1);
    if (token.startsWith("\\") && Object.hasOwn(SYMBOLS, name)) {
      return SYMBOLS[name][1];
    }
    if (/^[()[\]|/<>]$/.test(token)) {
      return { "<": "\u27e8", ">": "\u27e9" }[token] ?? token;
    }
    throw new NotDrawn(`${token} is no bracket`);
  }

  rows(name) {
    const table = [[]];
    for (;;) {
      table.at(-1).push(make("mtd", {}, this.row(["&", "\\\\"])));
      const token = this.take();
      if (token === "\\\\") {
        table.push([]);
      } else if (token === "\\end") {
        break;
      } else if (token !== "&") {
        throw new NotDrawn(`${token} closes nothing`);
      }
    }
    const closed = this.rawGroup();
    if (closed !== name) {
      throw new NotDrawn(`${name} is closed as ${closed}`);
    }
    // A break behind the last row makes no row.
    const isEmpty = (row) => row.length === 1 && row[0].textContent === "";
    return (isEmpty(table.at(-1)) ? table.slice(0, -1) : table).map((row) => make("mtr", {}, row));
  }
}

const CLOSERS = new Set(["}", "\\right", "\\end", "\\middle"]);

function attach(base, below, above, isLarge) {
  const [both, under, over] = isLarge
    ? ["munderover", "munder", "mover"]
    : ["msubsup", "msub", "msup"];
  if (below !== null && above !== null) {
    return make(both, {}, base, below, above);
  }
  if (below !== null) {
    return make(under, {}, base, below);
  }
  return above === null ? base : make(over, {}, base, above);
}

/** Mathematical letters of Unicode, and the few that it had before. */
function shift(upper, lower, digit, exceptions = {}) {
  return (letter) => {
    const code = letter.codePointAt(0);
    const within = (from, to) => code >= from.codePointAt(0) && code <= to.codePointAt(0);
    if (Object.hasOwn(exceptions, letter)) {
      return exceptions[letter];
    }
    if (within("A", "Z")) {
      return String.fromCodePoint(upper + code - 65);
    }
    if (within("a", "z") && lower !== null) {
      return String.fromCodePoint(lower + code - 97);
    }
    return within("0", "9") && digit !== null ? String.fromCodePoint(digit + code - 48) : letter;
  };
}

const ALPHABETS = {
  bold: shift(0x1d400, 0x1d41a, 0x1d7ce),
  calligraphic: shift(0x1d49c, 0x1d4b6, null, {
    B: "\u212c", E: "\u2130", F: "\u2131", H: "\u210b", I: "\u2110", L: "\u2112", M: "\u2133",
    R: "\u211b", e: "\u212f", g: "\u210a", o: "\u2134",
  }),
  double: shift(0x1d538, 0x1d552, 0x1d7d8, {
    C: "\u2102", H: "\u210d", N: "\u2115", P: "\u2119", Q: "\u211a", R: "\u211d", Z: "\u2124",
  }),
};

const BRACKETS = {
  Bmatrix: ["{", "}"], Vmatrix: ["\u2016", "\u2016"], bmatrix: ["[", "]"], cases: ["{", ""],
  pmatrix: ["(", ")"], vmatrix: ["|", "|"],
};
const TABLES = new Set(["matrix", "smallmatrix", "aligned", "align", "align*", "gathered", "array",
  "split", "equation", "equation*", "gather", "gather*"]);

function environment(reader) {
  const name = reader.rawGroup();
  if (!TABLES.has(name) && !Object.hasOwn(BRACKETS, name)) {
    throw new NotDrawn(`the environment ${name} is not known here`);
  }
  if (name === "array") {
    // How its columns are set; all are centered here.
    reader.rawGroup();
  }
  const kind = /^(?:align|split)/.test(name) ? "aligned" : name === "cases" ? "cases" : "matrix";
  const table = make("mtable", { class: `maths-${kind}` }, reader.rows(name));
  const [open, close] = BRACKETS[name] ?? ["", ""];
  return fenced(open, table, close);
}

function fenced(open, inside, close) {
  const bracket = (sign, form) => {
    return sign === "" ? [] : [make("mo", { stretchy: "true", fence: "true", form }, sign)];
  };
  return make("mrow", {}, bracket(open, "prefix"), inside, bracket(close, "postfix"));
}

function fraction(reader) {
  return make("mfrac", {}, reader.argument(), reader.argument());
}

function sized(reader) {
  return make("mo", { stretchy: "false" }, reader.delimiter());
}

function words(reader) {
  return make("mtext", {}, reader.rawGroup());
}

const COMMANDS = {
  begin: environment,
  binom: (reader) => {
    const parts = make("mfrac", { linethickness: "0" }, reader.argument(), reader.argument());
    return fenced("(", parts, ")");
  },
  boxed: (reader) => make("mrow", { class: "maths-boxed" }, reader.argument()),
  cfrac: fraction,
  dfrac: fraction,
  frac: fraction,
  tfrac: fraction,
  left: (reader) => {
    const open = reader.delimiter();
    const parts = [reader.row([])];
    while (reader.peek() === "\\middle") {
      reader.take();
      const fence = { stretchy: "true", fence: "true" };
      parts.push(make("mo", fence, reader.delimiter()), reader.row([]));
    }
    reader.expect("\\right");
    return fenced(open, make("mrow", {}, parts), reader.delimiter());
  },
  not: (reader) => make("mo", {}, `${reader.atom()[0].textContent}\u0338`),
  operatorname: (reader) => make("mi", { mathvariant: "normal" }, reader.rawGroup()),
  overbrace: (reader) => make("mover", {}, reader.argument(), make("mo", {}, "\u23de")),
  overset: (reader) => {
    const above = reader.argument();
    return make("mover", {}, reader.argument(), above);
  },
  pmod: (reader) => make("mrow", {}, make("mtext", {}, "\u2003(mod "), reader.argument(),
    make("mtext", {}, ")")),
  sqrt: (reader) => {
    if (reader.peek() !== "[") {
      return make("msqrt", {}, reader.argument());
    }
    reader.take();
    const index = reader.row(["]"]);
    reader.expect("]");
    return make("mroot", {}, reader.argument(), index);
  },
  substack: (reader) => reader.argument(),
  text: words,
  textbf: words,
  textit: words,
  textrm: words,
  underbrace: (reader) => make("munder", {}, reader.argument(), make("mo", {}, "\u23df")),
  underset: (reader) => {
    const below = reader.argument();
    return make("munder", {}, reader.argument(), below);
  },
};
for (const name of ["big", "Big", "bigg", "Bigg"]) {
  for (const side of ["", "l", "r", "m"]) {
    COMMANDS[name + side] = sized;
  }
}
for (const name of ["displaystyle", "textstyle", "scriptstyle"]) {
  COMMANDS[name] = () => make("mrow", {});
}
