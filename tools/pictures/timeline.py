#!/usr/bin/env python3
"""Draws a piece of a timeline that `pelton bench --trace` recorded, as SVG.

usage: timeline.py TRACE.json OUT.svg --from-step 40 --steps 6 [--title "..."]

One row a track: what the engine plans and settles, what the device runs, what each lane copies. Standard library only.
The pictures in docs/pictures were made by it; docs/how-it-works.md has the commands.
"""
import argparse
import html
import json

WIDTH, LEFT, ROW, TOP = 960, 150, 34, 44
COLORS = {"plan": "#3b6fb6", "settle": "#7a55a8", "step": "#2f8f5b"}
OTHER = "#b5762c"


def window(events, first, count):
    """From when `first` is planned until the last of `count` steps is settled, in microseconds."""
    spans = [e for e in events if e["ph"] == "X"]
    of = lambda name, number: next(
        (e for e in spans if e["name"] == name and e.get("args", {}).get("number") == number), None)
    start, end = of("plan", first), of("settle", first + count - 1)
    if start is None or end is None:
        raise SystemExit(f"the trace has no steps {first} to {first + count - 1}")
    return start["ts"], end["ts"] + end["dur"]


def scale(span):
    """A round distance between marks, in microseconds: 5 to 12 of them."""
    step = 1.0
    while span / step > 12:
        step *= 2.5 if str(step).startswith("2") else 2
    return step


def draw(events, start, end, title):
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    tracks = sorted(names)
    place = {track: TOP + index * ROW for index, track in enumerate(tracks)}
    height = TOP + len(tracks) * ROW + 34
    x = lambda time: LEFT + (time - start) / (end - start) * (WIDTH - LEFT - 16)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{html.escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="14" font-weight="600" fill="#1d232b">{html.escape(title)}</text>',
    ]
    for track in tracks:
        y = place[track]
        out.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 16}" height="{ROW - 6}" fill="#f1f3f6"/>')
        out.append(f'<text x="16" y="{y + 18}" fill="#1d232b">{html.escape(names[track])}</text>')
    for event in events:
        if event["ph"] != "X" or event["ts"] + event["dur"] < start or event["ts"] > end:
            continue
        left, right = x(max(event["ts"], start)), x(min(event["ts"] + event["dur"], end))
        wide, y = max(right - left, 1.2), place[event["tid"]]
        color = COLORS.get(event["name"], OTHER)
        number = event.get("args", {}).get("number")
        about = f'{event["name"]} {"" if number is None else number}: {event["dur"]:.0f} us'
        out.append(f'<rect x="{left:.1f}" y="{y + 2}" width="{wide:.1f}" height="{ROW - 10}" rx="2" '
                   f'fill="{color}" stroke="#ffffff" stroke-width="0.6"><title>{html.escape(about)}</title></rect>')
        if wide > 40 and number is not None:
            out.append(f'<text x="{left + wide / 2:.1f}" y="{y + 18}" text-anchor="middle" '
                       f'fill="#ffffff">{event["name"]} {number}</text>')
    step, base = scale(end - start), TOP + len(tracks) * ROW
    for index in range(int((end - start) / step) + 1):
        at = x(start + index * step)
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 4}" x2="{at:.1f}" y2="{base}" stroke="#c4cad3" stroke-width="0.5"/>')
        out.append(f'<text x="{at:.1f}" y="{base + 16}" text-anchor="middle" fill="#4b5563">'
                   f'{index * step / 1000:g} ms</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace")
    parser.add_argument("out")
    parser.add_argument("--from-step", type=int, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--title", default="Steps as they ran")
    arguments = parser.parse_args()
    with open(arguments.trace) as file:
        events = json.load(file)["traceEvents"]
    start, end = window(events, arguments.from_step, arguments.steps)
    with open(arguments.out, "w") as file:
        file.write(draw(events, start, end, arguments.title))


if __name__ == "__main__":
    main()
