//! What does a grammar in llama.cpp's notation (GBNF) say in the library's, which is Lark's?
//!
//! `root ::= "a" [0-9]+ item*`: rules with `::=`, classes of letters, groups, repetitions; the
//! first rule is `root`. Each class stays a letter of the grammar, so that nothing is matched more
//! greedily than was asked for.
//!
//! Source: `grammars/README.md` and `llama-grammar.cpp` of llama.cpp. Its tokens (`<...>`) are
//! refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Whether the first rule is written this way.
pub(crate) fn is_gbnf(text: &str) -> bool {
    let mut reader = Reader { rest: text, rules: Rules::default() };
    reader.skip(true);
    let name = reader.name();
    reader.skip(false);
    !name.is_empty() && reader.rest.starts_with("::=")
}

/// # Errors
/// What is wrong with it.
pub(crate) fn to_lark(text: &str) -> Result<String, String> {
    let mut reader = Reader { rest: text, rules: Rules::default() };
    let mut lark = String::new();
    reader.skip(true);
    while !reader.rest.is_empty() {
        lark.push_str(&reader.rule()?);
    }
    let Rules { numbers, defined } = reader.rules;
    match numbers.keys().find(|name| !defined.contains(**name)) {
        Some(name) => Err(format!("the rule `{name}` is not defined")),
        None if !defined.contains("root") => Err("there is no rule `root`".to_owned()),
        None => Ok(lark),
    }
}

#[derive(Default)]
struct Rules<'a> {
    /// In the order in which they are named.
    numbers: BTreeMap<&'a str, usize>,
    defined: BTreeSet<&'a str>,
}

impl<'a> Rules<'a> {
    /// Ours are small letters and digits only, and no two of theirs become one.
    fn called(&mut self, name: &'a str) -> String {
        let count = self.numbers.len();
        let number = *self.numbers.entry(name).or_insert(count);
        if name == "root" { "start".to_owned() } else { format!("rule_{number}") }
    }
}

struct Reader<'a> {
    rest: &'a str,
    rules: Rules<'a>,
}

impl<'a> Reader<'a> {
    /// Blanks and comments; a rule goes on behind a line's end within brackets only.
    fn skip(&mut self, over_lines: bool) {
        loop {
            let is_blank =
                |c: char| matches!(c, ' ' | '\t') || over_lines && matches!(c, '\r' | '\n');
            self.rest = self.rest.trim_start_matches(is_blank);
            if !self.rest.starts_with('#') {
                return;
            }
            let end = self.rest.find(['\r', '\n']).unwrap_or(self.rest.len());
            self.rest = &self.rest[end..];
        }
    }

    fn name(&mut self) -> &'a str {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name
    }

    fn takes(&mut self, text: &str) -> bool {
        let after = self.rest.strip_prefix(text);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn wrong(&self, wanted: &str) -> String {
        let shown: String = self.rest.chars().take(20).collect();
        format!("there must be {wanted} at `{}`", shown.escape_debug())
    }

    fn rule(&mut self) -> Result<String, String> {
        let name = self.name();
        if name.is_empty() {
            return Err(self.wrong("the name of a rule"));
        }
        self.skip(false);
        if !self.takes("::=") {
            return Err(self.wrong("`::=`"));
        }
        if !self.rules.defined.insert(name) {
            return Err(format!("the rule `{name}` is defined twice"));
        }
        self.skip(true);
        let called = self.rules.called(name);
        let body = self.alternatives(false)?;
        if !self.rest.is_empty() && !self.rest.starts_with(['\r', '\n']) {
            return Err(self.wrong("the end of the rule"));
        }
        self.skip(true);
        Ok(format!("{called}: {body}\n"))
    }

    fn alternatives(&mut self, is_nested: bool) -> Result<String, String> {
        let mut all = vec![self.sequence(is_nested)?];
        while self.takes("|") {
            self.skip(true);
            all.push(self.sequence(is_nested)?);
        }
        Ok(all.join(" | "))
    }

    fn sequence(&mut self, is_nested: bool) -> Result<String, String> {
        let mut items = Vec::new();
        loop {
            self.skip(is_nested);
            if self.rest.is_empty() || self.rest.starts_with(['|', ')', '\r', '\n']) {
                break;
            }
            let item = self.item()?;
            items.push(self.repeated(item, is_nested)?);
        }
        Ok(if items.is_empty() { "\"\"".to_owned() } else { items.join(" ") })
    }

    fn item(&mut self) -> Result<String, String> {
        if self.takes("\"") {
            let mut text = String::new();
            while !self.takes("\"") {
                text.push(self.letter()?);
            }
            return Ok(Value::from(text).to_string());
        }
        if self.takes("[") {
            return self.class();
        }
        if self.takes(".") {
            return Ok("/(?s:.)/".to_owned());
        }
        if self.takes("(") {
            self.skip(true);
            let inner = self.alternatives(true)?;
            return if self.takes(")") { Ok(format!("({inner})")) } else { Err(self.wrong("`)`")) };
        }
        match self.name() {
            "" => Err(self.wrong("a text, a class, a group or the name of a rule")),
            name => Ok(self.rules.called(name)),
        }
    }

    /// `a-z0-9]`, as a class of the library's expressions.
    fn class(&mut self) -> Result<String, String> {
        let negation = if self.takes("^") { "^" } else { "" };
        let mut ranges = String::new();
        while !self.takes("]") {
            let first = self.letter()?;
            let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            let last = if is_range && self.takes("-") { self.letter()? } else { first };
            if last < first {
                return Err(format!("the class runs backwards from `{first}` to `{last}`"));
            }
            let [first, last] = [first, last].map(u32::from);
            ranges.push_str(&format!("\\x{{{first:x}}}-\\x{{{last:x}}}"));
        }
        if ranges.is_empty() {
            return Err("a class is empty".to_owned());
        }
        Ok(format!("/[{negation}{ranges}]/"))
    }

    /// One letter, which may be escaped.
    fn letter(&mut self) -> Result<char, String> {
        let mut letters = self.rest.chars();
        let letter = letters.next().ok_or("a text or a class has no end")?;
        self.rest = letters.as_str();
        if letter != '\\' {
            return Ok(letter);
        }
        let letter = letters.next().ok_or("a text or a class has no end")?;
        self.rest = letters.as_str();
        let digits = match letter {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' | '-' | '^' => return Ok(letter),
            other => return Err(format!("`\\{other}` is not known")),
        };
        let code = self.rest.get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let letter = code.and_then(char::from_u32);
        let letter = letter.ok_or_else(|| self.wrong(&format!("a letter's {digits} digits")))?;
        self.rest = &self.rest[digits..];
        Ok(letter)
    }

    fn repeated(&mut self, mut item: String, is_nested: bool) -> Result<String, String> {
        loop {
            self.skip(is_nested);
            let Some(sign) = self.rest.chars().next() else { return Ok(item) };
            match sign {
                '*' | '+' | '?' => {
                    self.rest = &self.rest[1..];
                    item = format!("({item}){sign}");
                }
                '{' => {
                    let end = self.rest.find('}').ok_or_else(|| self.wrong("`}` behind"))?;
                    let times = &self.rest[1..end];
                    let is_count = |text: &str| text.trim().parse::<u32>().is_ok();
                    let is_right = match times.split_once(',') {
                        None => is_count(times),
                        Some((least, most)) => {
                            is_count(least) && (most.trim().is_empty() || is_count(most))
                        }
                    };
                    if !is_right {
                        return Err(self.wrong("`{times}` or `{least,most}`"));
                    }
                    self.rest = &self.rest[end + 1..];
                    item = format!("({item}){{{}}}", times.replace([' ', '\t'], ""));
                }
                _ => return Ok(item),
            }
        }
    }
}
