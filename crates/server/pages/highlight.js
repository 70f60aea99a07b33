// Which words of a program stand out? A lexer for comments, strings, numbers and keywords, alike
// for most languages: enough to read by, and never more than one pass over the text.

const C_LIKE = "break case catch class const continue default do else enum export extends false "
  + "final finally for function if import in instanceof interface let namespace new null override "
  + "package private protected public return static struct super switch template this throw true "
  + "try typedef typeof using var virtual void volatile while yield async await bool boolean char "
  + "double float int long short string unsigned auto func fn go defer chan map range type impl "
  + "trait pub mut use mod match where self Self crate dyn ref loop move unsafe as of undefined";
const PYTHON = "and as assert async await break class continue def del elif else except False "
  + "finally for from global if import in is lambda None nonlocal not or pass raise return self "
  + "True try while with yield match case";
const SHELL = "if then else elif fi for while until do done case esac in function return export "
  + "local set unset echo exit cd sudo true false";
const SQL = "select from where and or not insert into values update set delete create table drop "
  + "alter add primary key foreign references join left right inner outer on group by order having "
  + "limit offset union all as distinct null is in like between exists case when then else end";

const words = (text) => new Set(text.split(" "));
const SLASHES = { line: "//", block: ["/*", "*/"], quotes: "\"'`", words: words(C_LIKE) };
const HASH = { line: "#", block: null, quotes: "\"'", words: words(PYTHON) };
const LANGUAGES = {
  bash: { ...HASH, words: words(SHELL) },
  css: { line: null, block: ["/*", "*/"], quotes: "\"'", words: new Set() },
  html: { line: null, block: ["<!--", "-->"], quotes: "\"'", words: new Set() },
  json: { line: null, block: null, quotes: "\"", words: words("true false null") },
  python: HASH,
  rust: { ...SLASHES, quotes: "\"" },
  sql: { line: "--", block: ["/*", "*/"], quotes: "'", words: words(SQL), anyCase: true },
  yaml: { ...HASH, words: words("true false null yes no") },
};
const ALIASES = {
  htm: "html", ini: "yaml", jsonc: "json", py: "python", python3: "python", r: "python",
  rb: "python", rs: "rust", ruby: "python", sh: "bash", shell: "bash", svg: "html", toml: "yaml",
  xml: "html", yml: "yaml", zsh: "bash", console: "bash",
};
const LIKE_C = words("c cc cpp c++ cs csharp cuda dart go h hpp java javascript js jsx kotlin kt "
  + "objc php scala swift ts tsx typescript wgsl zig");

function rulesOf(language) {
  const name = language.toLowerCase();
  const known = Object.hasOwn(ALIASES, name) ? ALIASES[name] : name;
  if (Object.hasOwn(LANGUAGES, known)) {
    return LANGUAGES[known];
  }
  return LIKE_C.has(known) ? SLASHES : null;
}

const WORD = /[\p{L}_$][\p{L}\p{N}_$]*/uy;
const NUMBER = /(?:0[xX][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][-+]?\d+)?)[a-z\d_]*/y;
/** A longer text is shown without colors, so that a page stays quick. */
const CHARS_MAX = 60_000;

/** The pieces of a program in order: `[kind, text]`, where `kind` is null for plain text. */
export function highlight(text, language) {
  const rules = rulesOf(language);
  if (rules === null || text.length > CHARS_MAX) {
    return [[null, text]];
  }
  const pieces = [];
  let plainFrom = 0;
  let at = 0;
  while (at < text.length) {
    const [kind, end] = pieceAt(text, at, rules);
    if (kind !== null) {
      if (at > plainFrom) {
        pieces.push([null, text.slice(plainFrom, at)]);
      }
      pieces.push([kind, text.slice(at, end)]);
      plainFrom = end;
    }
    at = end;
  }
  if (plainFrom < text.length) {
    pieces.push([null, text.slice(plainFrom)]);
  }
  return pieces;
}

function pieceAt(text, at, rules) {
  if (rules.line !== null && text.startsWith(rules.line, at)) {
    return ["comment", endOr(text, text.indexOf("\n", at))];
  }
  if (rules.block !== null && text.startsWith(rules.block[0], at)) {
    const end = text.indexOf(rules.block[1], at + rules.block[0].length);
    return ["comment", end < 0 ? text.length : end + rules.block[1].length];
  }
  if (rules.quotes.includes(text[at])) {
    return ["string", stringEnd(text, at)];
  }
  WORD.lastIndex = at;
  const word = WORD.exec(text);
  if (word !== null) {
    const known = rules.words.has(rules.anyCase ? word[0].toLowerCase() : word[0]);
    return [known ? "keyword" : null, at + word[0].length];
  }
  NUMBER.lastIndex = at;
  const number = NUMBER.exec(text);
  return number === null ? [null, at + 1] : ["number", at + number[0].length];
}

function endOr(text, end) {
  return end < 0 ? text.length : end;
}

/** Behind the closing quote; quotes of three and of templates go over several lines. */
function stringEnd(text, at) {
  const quote = text[at];
  const triple = quote.repeat(3);
  if (quote !== "`" && text.startsWith(triple, at)) {
    const end = text.indexOf(triple, at + 3);
    return end < 0 ? text.length : end + 3;
  }
  for (let end = at + 1; end < text.length; end += 1) {
    if (text[end] === "\\") {
      end += 1;
    } else if (text[end] === quote) {
      return end + 1;
    } else if (text[end] === "\n" && quote !== "`") {
      return end;
    }
  }
  return text.length;
}
