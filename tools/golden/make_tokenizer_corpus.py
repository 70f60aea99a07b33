"""Writes the awkward strings that every tokenizer test encodes.

Run: python make_tokenizer_corpus.py
Writes crates/tokenizer/tests/data/corpus.json. Needs nothing but Python.
"""

import json
import pathlib
import random

DATA = pathlib.Path(__file__).parents[2] / "crates/tokenizer/tests/data"

PLAIN = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r", "\r\n", "\r\n\r\n", "\v\f",
    "a", " a", "a ", " a ", "  a  ", "a\n", "\na", " \n", "\n ", " \n ", "\n \n", "\t \t", " \t\n x",
    "Hello, world!", "Hello  world", "Hello   world", "Hello\tworld", "Hello\nworld", "Hello\r\nworld",
    "Why is the sky blue?", "The quick brown fox jumps over the lazy dog.", "ALL CAPS SHOUTING!!!",
    "CamelCaseWords and snake_case_words and kebab-case-words", "XMLHttpRequest2JSONParser",
    "I'm you're he'll she'd we've they're it's don't can't", "I'M YOU'RE HE'LL SHE'D WE'VE IT'S DON'T",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE", "'", "''", "'''", "rock'n'roll", "o'clock 'sup ''ll", "it's'll've",
    "\u2019s \u2019t don\u2019t", "'\u017f x'\u017f", "\u212a 's\u212a", "d'\u00e9t\u00e9 l'\u00e9t\u00e9",
]

NUMBERS = [
    "0", "1", "12", "123", "1234", "12345", "123456", "1234567890", "3.14159", "1,234,567.89", "-42", "+7e-10",
    "0x1F", "1st 2nd 3rd", "a1b2c3", "2024-02-29T23:59:59Z", "192.168.0.1", "100%", "$99.99", " 1 2  3   4",
    "\u0661\u0662\u0663\u0664", "\u0967\u0968\u0969", "\u00b2\u00b3\u00b9", "\u00bd \u00bc \u2155", "\u2160\u2163\u216b", "\u2460\u2461\u246a",
    "\uff11\uff12\uff13", "\u4e00\u4e8c\u4e09 123", "x\u00b2+y\u00b2=z\u00b2", "1\u00a0000\u202f000", "007", "12 345 6789 01234",
]

SPACES = [
    "a\u00a0b", "\u00a0", "\u00a0\u00a0", "a\u2003b", "a \u2003 b", "\u3000", "\u5168\u3000\u89d2", "a\u200bb", "a\u2028b\u2029c", "\u0085", "a\u0085b",
    "a\u1680b", "a\u180eb", "\ufeffBOM", "a\u2060b", "a \n b", "a  \n  b", "a\n\n  b", "a \r\n b\r\n\r\nc", "a\rb\rc", "trailing   ",
    "   leading", "\n\n\n   x", "x   \n\n\n", "\t\tindented\n\t\t\tmore", "    four\n        eight\n  two", " \u00a0 \u00a0x", "\u2007\u2008 x",
    "\x1c\x1d\x1e\x1f", "a\x1cb c", "\x0b\x0b x", "  \u200b  x", "tab\t tab \ttab", "line\n\tline\n\t\tline",
]

CONTROL = [
    "\x00", "\x00\x00\x00", "a\x00b", "\x01\x02\x03", "\x07bell", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x81\x9f", "\u00ad", "soft\u00adhyphen",
    "\ufffd", "\ufffe\uffff", "\ufff9\ufffa\ufffb", "\ue000\uf8ff", "\U000f0000\U0010ffff", "\U0001fffe", "\u200e\u200f\u202a\u202c", "\ud7ff\ue000", "\ufdd0",
]

EMOJI = [
    "\U0001f600", "\U0001f600\U0001f600\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
    "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f9d1\U0001f3fb\u200d\U0001f52c hi", "\u00a9\u00ae\u2122", "a\U0001f600b", " \U0001f600 ", "\U0001f600\n\U0001f600", "\u263a\u263b \u2605\u2606", "\U0001fae0\U0001faf6",
    "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f", "\u2328\ufe0f \u23cf", "\U0001f3f4\U000e0067\U000e0062\U000e007f",
]

SCRIPTS = [
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439, \u043c\u0438\u0440!", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03ba\u03b5\u03af\u03bc\u03b5\u03bd\u03b1", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3067\u3059\u3002", "\u4e2d\u6587\u6587\u672c\uff0c\u4f60\u597d\u3002", "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0646\u0635", "\u05e2\u05d1\u05e8\u05d9\u05ea \u05d8\u05e7\u05e1\u05d8", "\u0939\u093f\u0928\u094d\u0926\u0940 \u092a\u093e\u0920", "\u0e44\u0e17\u0e22 \u0e02\u0e49\u0e2d\u0e04\u0e27\u0e32\u0e21", "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8", "\u0531\u0580\u0574\u0565\u0576\u056b\u0561",
    "\u12a0\u121b\u122d\u129b", "\u1781\u17d2\u1798\u17c2\u179a", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u0f56\u0f7c\u0f51\u0f0b\u0f61\u0f72\u0f42", "\u13e3\u13b3\u13a9", "\uab70\uab71 \u13a0\u13f8", "\U00010400\U00010428", "\U00012000\U00013000", "\u16a0\u16c1\u16b1",
    "\u1680\u1681", "na\u00efve caf\u00e9 \u00fcber stra\u00dfe", "\u0130stanbul \u0131\u015f\u0131k", "\u01c5 \u01c4 \u01c6 \u01f2", "\u1c90\u10d0 \u2c00\u2c30", "\ufb00\ufb01\ufb02 \ufb13", "\u00c6\u0152\u00f8\u0142\u00f0\u00fe", "\u1e9e\u00df",
    "Ti\u1ebfng Vi\u1ec7t c\u00f3 d\u1ea5u", "T\u00fcrk\u00e7e'nin \u0130stanbul'da", "\u3042\u30a2\u4e9c\uff71\uff21", "\u4e00\u9fa5\u9fa6\u3400\U00020000", "\u3131\u314f\u1100\u1161", "\ud7a3\ud7b0\ud7ff", "\u0800\u0801", "mix\u4e2dmix\u6587mix", "\u02b0\u02b1\u02e4 \u1d2c\u1d43",
    "\u0391\u03b1\u0410\u0430Aa", "\u2126\u212a\u212b", "\u1fbe\u1fd3\u1fdb", "\ua722\ua771\ua78b",
]

COMBINING = [
    "e\u0301", "cafe\u0301", "\u0301", " \u0301", "a\u0308\u0301\u0323", "Z\u0351\u036b\u0343a\u0310\u0321l\u0348g\u0334o\u0321", "\u0928\u093f", "\u0e01\u0e49\u0e33", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u0627\u064e\u0644\u0652", "o\u0302\u0300 \u1ed3", "x\u20d7 y\u0305", "\u0301\u0301\u0301", "1\u0301 2\u20e3", "!\u0301?", "A\u0301B\u0301c\u0301", "\u1112\u1161\u11ab",
]

RIGHT_TO_LEFT = [
    "abc \u05d0\u05d1\u05d2 def", "\u202eevil\u202c", "(\u0627\u0644\u0633\u0644\u0627\u0645) 123", "\u0645\u0631\u062d\u0628\u0627! Hello! \u05e9\u05dc\u05d5\u05dd!", "\u060c\u061b\u061f", "\u0660\u0661%", "\u06f1\u06f2\u06f3 \u06d4",
]

CODE = [
    "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    "fn main() { println!(\"{}\", 1_000u64); }", "SELECT * FROM t WHERE a='b' AND c>=10;", "<html><body class=\"x\">&amp;</body></html>",
    "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\\n\"}", "if (a && b || !c) ? x : y;", "https://example.com/a?b=c&d=%20#frag", "user@example.org",
    "C:\\Users\\me\\file.txt", "/usr/local/bin:/opt", "#include <stdio.h>\r\n#define X 1\r\n", "a=b==c===d!=e!==f", "->=>::<-|>", "$x->{y}[0]", "\\frac{a}{b} \\alpha^2_i",
    "`code` **bold** _it_ ~~x~~", "| a | b |\n|---|---|\n| 1 | 2 |", "<!-- c -->\n/* c */\n// c\n", "\"\"\"doc\"\"\"", "lambda x:x+1", "a.b.c().d[e]", "0b1010 & 0o17 ^ ~x << 3",
    "    \n    \n", "import os, sys\n\n\nclass A(B):\n    pass\n", "!@#$%^&*()_+-=[]{}|;':\",./<>?`~", "...", "\u2026\u3001\u3002\u201c\u201d\u2018\u2019\u2014", "a/b//c/\n/d", "x!\n\n/y?\r\n/",
]

SPECIAL = [
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "<|endoftext|><|endoftext|>", "a<|im_end|>b", " <|im_start|> ", "<|im_start", "im_start|>", "<|im_start|", "<|im_|im_start|>start|>",
    "< |im_end|>", "<|IM_END|>", "<s>", "</s>", "<unk>", "<pad>", "<s></s><s>", "<0x0A>", "<0x41><0x42>", "[INST] hi [/INST]", "<|eot_id|><|begin_of_text|>", "<tool_call>", "<tool_call>{}</tool_call>",
    "x <tool_call> y", "<<tool_call>>", "<repo_name>a<file_sep>b", "\u2581", "\u2581\u2581a \u2581", "a\u2581b", "\u0120the \u010a", "##ing", "<|im_end|>\n<|im_start|>assistant\n",
]

LONG = [
    "a" * 300, "A" * 100, " " * 100, "\n" * 60, "\t" * 50, "1" * 100, "!" * 120, "=" * 200, "-" * 80 + "\n" + "-" * 80, "ab" * 200, "abc " * 60, "\u4e2d" * 100, "\U0001f600" * 40,
    "\u0301" * 50, "\u00a0" * 50, "x" + " " * 70 + "y", " \n" * 40, "\r\n" * 40, "\x00" * 40, "'s" * 50, "aA" * 80, "a1" * 60, "Supercalifragilisticexpialidocious" * 4, "\u0627\u0644" * 60, ". " * 60, "(" * 64 + ")" * 64,
]


def mixed(count):
    """Strings of random pieces of the others: boundaries that nobody thought of."""
    chance = random.Random(20240229)
    parts = [s for group in (PLAIN, NUMBERS, SPACES, CONTROL, EMOJI, SCRIPTS, COMBINING, CODE) for s in group if s]
    return ["".join(chance.choice(parts) for _ in range(chance.randint(2, 6))) for _ in range(count)]


def main():
    groups = [PLAIN, NUMBERS, SPACES, CONTROL, EMOJI, SCRIPTS, COMBINING, RIGHT_TO_LEFT, CODE, SPECIAL, LONG, mixed(80)]
    # Without what Python writes for half a surrogate pair: it is no text.
    strings = [s for group in groups for s in group if s.isprintable() or s.encode("utf-8", "surrogatepass").decode("utf-8", "ignore") == s]
    strings = list(dict.fromkeys(strings))
    DATA.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(s) for s in strings)
    (DATA / "corpus.json").write_text(f"[\n{lines}\n]\n")
    print(len(strings), "strings")


if __name__ == "__main__":
    main()
