"""Do the pages work in a browser, for anybody, and stay safe whatever a model says?

Usage: check.py URL [--pictures FOLDER]

URL is a scripted server (`PELTON_PORT=8099 cargo run -p server --example scripted`), whose answers
are known. Needs `pip install playwright` and a Chromium of the system (or named in PELTON_BROWSER);
where there is none it says so and checks nothing. `cargo test -p server browser` runs it.
"""

import argparse
import json
import os
import re
import shutil
import sys

from cases import ALLOWED, FORMULAS, HOSTILE, MARKDOWN

try:
    from playwright.sync_api import Error as PlaywrightError
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    print("skipped: the Python package playwright is not installed")
    sys.exit(0)

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# A machine with other work is slow, and that is not what is asked here.
PATIENCE_MS = 120_000

expect.set_options(timeout=PATIENCE_MS)
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Visit:
    """A page in a browser of its own, which notes what must not happen."""

    def __init__(self, browser, url, form=DESKTOP, theme="light", path="/"):
        self.url = url
        self.context = browser.new_context(color_scheme=theme, **form)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.faults = []
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        self.page.on("console", self.heard)
        self.page.on("request", self.asked)
        self.page.goto(url + path)
        if path == "/":
            self.page.wait_for_selector("#model option", state="attached")

    def heard(self, message):
        # The browser notes each refusal of the server; those are told on the page.
        if message.type in ("error", "warning") and "status of" not in message.text \
                and "ERR_FAILED" not in message.text:
            self.faults.append(f"console: {message.text}")

    def asked(self, request):
        if not request.url.startswith((self.url + "/", "blob:")):
            self.faults.append(f"asked another machine: {request.url}")

    def say(self, text):
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def answer(self):
        """The text of the last answer, once it has ended."""
        last = self.page.locator(".assistant").last
        last.locator(".note").wait_for()
        return last.locator(".text").last.inner_text()

    def scripted(self, text):
        """From now on the server answers with `text`."""
        chunks = [{"choices": [{"index": 0, "delta": {"content": text[at:at + 997]}}]}
                  for at in range(0, len(text), 997)]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.reply(body=body, content_type="text/event-stream")

    def reply(self, **how):
        self.page.unroute_all()
        self.page.route("**/v1/chat/completions", lambda route: route.fulfill(**how))

    def close(self):
        self.context.close()
        assert not self.faults, self.faults


@check
def a_conversation_is_kept_edited_and_answered_anew(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    visit.say("the first question")
    first = visit.answer()
    assert len(first.split()) > 3, first
    visit.say("the second")
    page.locator(".assistant").nth(1).locator(".note").wait_for()
    page.reload()
    page.wait_for_selector(".assistant .note")
    assert page.locator(".message").count() == 4
    assert page.locator(".conversation").inner_text() == "the first question"
    page.locator(".assistant").nth(1).get_by_label("Answer anew").click()
    page.wait_for_selector(".versions:has-text('2 / 2')")
    page.get_by_label("The answer before").click()
    page.wait_for_selector(".versions:has-text('1 / 2')")
    page.locator(".user").first.hover()
    page.get_by_label("Edit this message").first.click()
    page.locator(".editor textarea").fill("another question")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".message")).to_have_count(2)
    assert visit.answer() != first
    assert page.locator(".said").inner_text() == "another question"
    # What followed stays with the version that it followed.
    page.locator(".user").hover()
    page.locator(".user").get_by_label("The message before").click()
    expect(page.locator(".said")).to_have_text(["the first question", "the second"])
    expect(page.locator(".message")).to_have_count(4)
    page.locator(".assistant").first.get_by_label("Answer anew").click()
    expect(page.locator(".assistant").first.locator(".versions")).to_contain_text("2 / 2")
    expect(page.locator(".message")).to_have_count(2)
    page.reload()
    page.locator(".assistant").first.get_by_label("The answer before").click()
    expect(page.locator(".message")).to_have_count(4)
    assert page.locator(".assistant").first.locator(".text").last.inner_text() == first
    visit.close()


@check
def a_question_keeps_its_indentation_and_all_refusals_are_told(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    visit.say("\n    if a:\n        b()\n")
    visit.answer()
    said = page.locator(".said").evaluate("node => node.textContent")
    assert said == "    if a:\n        b()", repr(said)
    files = [{"name": name, "mimeType": "text/plain", "buffer": b"\0"} for name in ("a.x", "b.x")]
    page.set_input_files("#file", files)
    expect(page.locator("#notice")).to_contain_text("a.x was not attached")
    expect(page.locator("#notice")).to_contain_text("b.x was not attached")
    visit.close()


@check
def conversations_are_found_renamed_and_deleted(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    for title in ["about rivers", "about mountains"]:
        page.click("#new-chat")
        visit.say(title)
        visit.answer()
    assert page.locator(".conversation").count() == 2
    page.fill("#search", "RIVERS")
    assert page.locator(".conversation").all_inner_texts() == ["about rivers"]
    page.locator(".conversation").hover()
    page.get_by_label("Rename about rivers").click()
    page.locator(".rename").fill("about lakes")
    page.press(".rename", "Enter")
    page.fill("#search", "")
    page.get_by_role("button", name="about lakes", exact=True).wait_for()
    page.get_by_role("button", name="about lakes", exact=True).hover()
    page.get_by_label("Delete about lakes").click()
    page.click("#sure-yes")
    expect(page.locator(".conversation")).to_have_count(1)
    page.reload()
    page.wait_for_selector(".conversation")
    assert page.locator(".conversation").all_inner_texts() == ["about mountains"]
    visit.close()


@check
def settings_and_files_reach_the_server(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    page.click("#open-settings")
    page.fill("#system", "Speak like a sailor.")
    page.fill("#parameter-temperature", "0.5")
    page.fill("#parameter-max_tokens", "7")
    page.fill("#stop-texts", "END\nSTOP")
    page.get_by_role("button", name="Done").click()
    notes = {"name": "a``.txt", "mimeType": "text/plain", "buffer": b"one\n```\ntwo\n"}
    binary = {"name": "b.bin", "mimeType": "text/plain", "buffer": b"\xff\xfe\x00"}
    page.set_input_files("#file", files=[notes, binary])
    page.wait_for_selector(".file-name")
    assert "b.bin was not attached" in page.locator("#notice").inner_text()
    with page.expect_request("**/v1/chat/completions") as sent:
        visit.say("read this")
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Speak like a sailor."}
    said = body["messages"][1]["content"]
    assert said == "File: a``.txt\n````\none\n```\ntwo\n````\n\nread this", said
    assert (body["temperature"], body["max_tokens"]) == (0.5, 7)
    assert body["stop"] == ["END", "STOP"] and "top_p" not in body
    visit.answer()
    visit.close()


@check
def an_answer_can_be_stopped(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    for stop in [lambda: page.keyboard.press("Escape"), lambda: page.click("#stop")]:
        visit.say("!hang now")
        page.wait_for_selector("#stop:visible")
        stop()
        page.wait_for_selector("#send:visible")
        page.wait_for_selector(".assistant:last-child .note:has-text('stopped')")
    visit.close()


@check
def troubles_are_told_in_words(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    last = lambda: page.locator(".assistant").last.locator(".trouble")
    visit.say("!busy")
    last().get_by_text("The server is busy.").wait_for()
    last().get_by_role("button", name=re.compile("Try again")).wait_for()
    visit.say("!unavailable")
    last().get_by_text("No answer can be given now.").wait_for()
    visit.say("!fail")
    last().get_by_text("The server failed on this answer.").wait_for()
    visit.reply(status=401, json={"error": {"message": "no key"}})
    visit.say("hello")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "sk-test")
    page.get_by_role("button", name="Use this key").click()
    page.unroute_all()
    with page.expect_request("**/v1/chat/completions") as sent:
        last().get_by_role("button", name="Try again").click()
    assert sent.value.headers["authorization"] == "Bearer sk-test"
    visit.answer()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    visit.say("hello")
    last().get_by_text("The server cannot be reached.").wait_for()
    visit.reply(body='data: {"choices":[{"delta":{"content":"half"}}]}\n\n',
                content_type="text/event-stream")
    visit.say("hello")
    last().get_by_text("The connection broke").wait_for()
    assert page.locator(".assistant").last.locator(".text").last.inner_text() == "half"
    visit.close()


@check
def markdown_becomes_the_nodes_it_should(browser, url):
    visit = Visit(browser, url)
    show = """async (text) => {
        const { show } = await import("/pages/render.js");
        const node = document.createElement("div");
        show(node, text);
        return new XMLSerializer().serializeToString(node).replace(/ xmlns="[^"]*"/g, "")
            .replace(/ \\/>/g, ">").replace(/^<div>|<\\/div>$/g, "");
    }"""
    for text, wanted in MARKDOWN:
        found = visit.page.evaluate(show, text)
        assert found == wanted, f"{text!r}\n  gives {found}\n  not   {wanted}"
    visit.close()


@check
def an_answer_that_grows_ends_as_one_that_came_at_once(browser, url):
    visit = Visit(browser, url)
    grow = """async (text) => {
        const { show } = await import("/pages/render.js");
        const [grown, whole] = [document.createElement("div"), document.createElement("div")];
        for (let end = 1; end <= text.length; end += 1) {
            show(grown, text.slice(0, end));
        }
        show(whole, text);
        return grown.isEqualNode(whole);
    }"""
    blocks = "```a\nx\n```\n\n$$\nx^2\n$$\n\n|a|b|\n|-|-|\n|1|2|"
    for text in ["\n\n".join(text for text, _ in MARKDOWN), blocks]:
        assert visit.page.evaluate(grow, text), text
    visit.close()


@check
def formulas_are_drawn_or_shown_as_written(browser, url):
    visit = Visit(browser, url)
    draw = """async (text) => {
        const { mathsNode } = await import("/pages/maths.js");
        const node = mathsNode(text, "block");
        const names = [node, ...node.querySelectorAll("*")].map((part) => part.localName);
        return [names, node.textContent];
    }"""
    for text, tag, words in FORMULAS:
        names, found = visit.page.evaluate(draw, text)
        assert tag in names and found == words, f"{text!r} gives {names} {found!r}"
    visit.close()


@check
def hostile_answers_stay_words(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    for text in HOSTILE:
        page.click("#new-chat")
        visit.scripted(text)
        visit.say(text)
        visit.answer()
        parts = page.eval_on_selector_all(
            "#messages .text *", "parts => parts.map(part => [part.localName, part.href ?? ''])")
        for name, href in parts:
            assert name in ALLOWED, f"{name} came of {text!r}"
            if name == "a":
                assert href.startswith(("http://", "https://", "mailto:")), href
        listeners = page.eval_on_selector_all("#messages *", """parts => parts.flatMap(part =>
            part.getAttributeNames().filter(name => name.startsWith('on') || name === 'style'))""")
        assert listeners == [], listeners
    page.reload()
    page.wait_for_selector(".conversation")
    visit.close()


@check
def what_is_kept_is_not_trusted(browser, url):
    visit = Visit(browser, url)
    kept = {"a": "not json", "b": "null", "c": "[]", "d": '{"messages": [1, null, {"role": "x"}]}',
            "e": '{"title": {}, "messages": [{"role": "assistant", "answers": [], "shown": 9}]}',
            "f": '{"title": "<img src=x onerror=alert(1)>", "changed": "x", "messages": '
                 '[{"role": "user", "text": 5, "files": [null]}, '
                 '{"role": "assistant", "answers": [{"text": ["x"]}], "shown": -7}]}'}
    visit.page.evaluate("""kept => { for (const [id, text] of Object.entries(kept)) {
        localStorage.setItem('pelton.conversation.' + id, text); } }""", kept)
    visit.page.reload()
    visit.page.wait_for_selector(".conversation")
    for at in range(visit.page.locator(".conversation").count()):
        visit.page.locator(".conversation").nth(at).click()
    visit.say("still here")
    visit.answer()
    visit.close()


@check
def a_phone_has_all_of_it_within_its_width(browser, url):
    for theme in ["light", "dark"]:
        visit = Visit(browser, url, PHONE, theme)
        page = visit.page
        visit.scripted("a `" + "wide" * 80 + "`\n\n```\n" + "code " * 80 + "\n```\n\n|"
                       + "cell|" * 12 + "\n|" + "-|" * 12 + "\n\n" + "word" * 90)
        page.fill("#question", "x" * 300)
        page.click("#send")
        visit.answer()
        widths = """() => [screen.width, document.documentElement.scrollWidth,
            document.querySelector('#scroll, main').scrollWidth]"""
        fits = lambda widths: max(widths) <= PHONE["viewport"]["width"]
        assert fits(page.evaluate(widths)), page.evaluate(widths)
        assert page.evaluate("document.querySelector('#sidebar').inert")
        page.click("#open-sidebar")
        page.wait_for_selector("#sidebar.open")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "open-sidebar"
        page.goto(url + "/dashboard")
        page.wait_for_selector("#models tr")
        assert fits(page.evaluate(widths)), page.evaluate(widths)
        visit.close()


@check
def the_keyboard_and_a_screen_reader_find_everything(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("skip")
    page.keyboard.press("Enter")
    page.keyboard.type("by keys alone")
    page.keyboard.press("Enter")
    visit.answer()
    assert "The answer is complete" in page.locator("#spoken").text_content()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".message")).to_have_count(0)
    for path in ["/", "/dashboard"]:
        page.goto(url + path)
        page.wait_for_load_state("networkidle" if path == "/" else "load")
        nameless = page.evaluate("""() => [...document.querySelectorAll(
            'button, a[href], input:not([type=file]), select, textarea')].filter((node) =>
            !(node.getAttribute('aria-label') || node.textContent.trim()
            || node.labels?.length > 0)).map((node) => node.outerHTML)""")
        assert nameless == [], nameless
    visit.close()


@check
def colors_can_be_told_apart(browser, url):
    pairs = [("ink", "ground"), ("ink", "raised"), ("ink-soft", "ground"), ("ink-soft", "sunken"),
             ("accent", "ground"), ("accent-ink", "accent"), ("danger", "ground"),
             ("ink", "danger-wash"), ("ink", "accent-wash"), ("good", "ground"), ("warn", "ground"),
             *((f"code-{kind}", "sunken") for kind in ["keyword", "string", "number", "comment"])]
    for theme in ["light", "dark"]:
        visit = Visit(browser, url, theme=theme)
        for ink, ground in pairs:
            colors = visit.page.evaluate("""names => names.map((name) =>
                getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim())""",
                [ink, ground])
            ratio = contrast(*colors)
            # WCAG 2.2, 1.4.3: text of everyday size.
            assert ratio >= 4.5, f"{theme}: {ink} on {ground} is {ratio:.2f}"
        visit.close()


def contrast(one, other):
    def light(color):
        parts = [int(color[at:at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
                  for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@check
def the_dashboard_tells_what_the_counters_say(browser, url):
    visit = Visit(browser, url, path="/dashboard")
    page = visit.page
    page.wait_for_selector(".health.good")
    page.wait_for_selector("#models tr")
    assert page.locator(".tile").count() == 6 and page.locator(".chart").count() == 9
    two = {"data": [{"id": "one", "state": "ready"}, {"id": "two", "state": "loading"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=two))
    page.wait_for_selector("#of-model:visible")
    page.select_option("#of-model", "two")
    page.wait_for_selector(".tile:has-text('First token') .about:has-text('all models')")
    page.wait_for_selector(".chart:has-text('Heaps') .about:has-text('of all models')")
    assert page.get_by_text("Being answered", exact=False).inner_text().endswith("queue")
    page.route("**/metrics", lambda route: route.abort())
    page.wait_for_selector(".health.away")
    page.wait_for_selector("#notice:has-text('cannot be reached')")
    spans = """async () => {
        const { parseMetrics, Span } = await import("/pages/counters.js");
        const page = (a, b, c) => parseMetrics(`h_bucket{le="1"} ${a}\\nh_bucket{le="2"} ${b}\\n`
            + `h_bucket{le="+Inf"} ${c}\\nx{m="a\\\\"b"} ${c}\\n# HELP x y\\n`);
        const [none, some] = [page(0, 0, 0), page(2, 4, 4)];
        const span = new Span({ at: 0, metrics: none }, { at: 2000, metrics: some });
        const back = new Span({ at: 0, metrics: some }, { at: 2000, metrics: none });
        return [span.rate("x"), span.rate("x", { m: 'a"b' }), span.percentile("h", 0.5),
            span.percentile("h", 0.75), span.rate("none"), back.rate("x"),
            back.percentile("h", 0.5)];
    }"""
    found = page.evaluate(spans)
    assert found == [2, 2, 1, 1.5, None, None, None], found
    visit.close()


def find_browser():
    named = os.environ.get("PELTON_BROWSER")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--pictures")
    parser.add_argument("--only")
    arguments = parser.parse_args()
    path = find_browser()
    if path is None:
        print(f"skipped: no browser is installed ({', '.join(BROWSERS)})")
        return 0
    failed = 0
    url = arguments.url.rstrip("/")
    with sync_playwright() as playwright:
        options = {"executable_path": path, "args": ["--no-sandbox"], "timeout": PATIENCE_MS}
        try:
            browser = playwright.chromium.launch(**options)
        except PlaywrightError as error:
            # Some systems put a script in its place that asks to install one.
            print(f"skipped: {path} does not start: {str(error).splitlines()[0]}")
            return 0
        for function in CHECKS:
            if arguments.only and arguments.only not in function.__name__:
                continue
            try:
                function(browser, url)
                print(f"ok      {function.__name__}")
            except Exception as error:  # Each check is told, whatever it met.
                failed += 1
                print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}")
        if arguments.pictures:
            take_pictures(browser, url, arguments.pictures)
        browser.close()
    return 1 if failed else 0


def take_pictures(browser, url, folder):
    """For people to look at: both pages, both themes, desktop and phone."""
    answer = "\n\n".join(text for text, _ in MARKDOWN) + "\n\n```python\nprint(1)\n```\n\n" \
        + "\n\n".join(f"$${text}$$" for text, _, _ in FORMULAS[:6])
    for theme in ["light", "dark"]:
        for name, form in [("desktop", DESKTOP), ("phone", PHONE)]:
            visit = Visit(browser, url, form, theme)
            visit.scripted(answer)
            visit.page.fill("#question", "How does a text look?")
            visit.page.click("#send")
            visit.answer()
            visit.page.screenshot(path=f"{folder}/chat-{name}-{theme}.png")
            visit.page.goto(url + "/dashboard")
            visit.page.wait_for_selector("#models tr")
            visit.page.screenshot(path=f"{folder}/dashboard-{name}-{theme}.png")
            visit.close()


if __name__ == "__main__":
    sys.exit(main())
