"""The frame of every page: one HTML file with its style inside, light and dark, for wide and narrow screens."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from slm.showing import harmless

MARKER = "<!-- A page of slm. -->"  # ends the first line of every page
CARD_MARKER = (  # the last line of every card
    "<!-- Made by slm, which replaces this card when the run goes on. Without this line it leaves it as it is. -->"
)
_DARK = """
  --ink: #e7e9ec; --soft: #a9b1bb; --line: #3a414b; --paper: #16191d; --panel: #1f2429; --accent: #7fb4ff;
  --good: #6fd39b; --bad: #ff9d8a; --heat: 127, 180, 255; --sure: 111, 211, 155;
  --series-1: #7fb4ff; --series-2: #ffb066; --series-3: #6fd39b; --series-4: #d6a1f5; --series-5: #ff9d8a;
  --series-6: #d8cf6a;
  color-scheme: dark;
"""
_LIGHT = """
  --ink: #1b1f24; --soft: #57606a; --line: #d5dae0; --paper: #ffffff; --panel: #f5f7f9; --accent: #1a5fb4;
  --good: #186a3b; --bad: #a8281a; --heat: 26, 95, 180; --sure: 24, 106, 59;
  --series-1: #1a5fb4; --series-2: #a34b00; --series-3: #186a3b; --series-4: #7b3aa0; --series-5: #a8281a;
  --series-6: #6b6100;
  color-scheme: light;
"""
# Notebooks tell their theme by an attribute or a class of the page around, not by the system's preference.
STYLE = f"""
.slm {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ .slm {{ {_DARK} }} }}
[data-jp-theme-light="true"] .slm, .vscode-light .slm {{ {_LIGHT} }}
[data-jp-theme-light="false"] .slm, .vscode-dark .slm, html[theme="dark"] .slm {{ {_DARK} }}
.slm {{ background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
.slm * {{ box-sizing: border-box; }}
.slm h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }}
.slm h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .6rem; }}
.slm h3 {{ font-size: 1rem; margin: 1.2rem 0 .3rem; }}
.slm p {{ margin: .5rem 0; max-width: 44rem; }}
.slm .soft, .slm figcaption small {{ color: var(--soft); }}
.slm a {{ color: var(--accent); }}
.slm .panel {{ background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  margin: .7rem 0; }}
.slm .finding {{ border-left: .3rem solid var(--bad); }}
.slm .finding.good {{ border-left-color: var(--good); }}
.slm .finding.room {{ border-left-color: var(--accent); }}
.slm .finding p {{ margin: .2rem 0; }}
.slm .tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .7rem;
  margin: 1rem 0; }}
.slm .tile {{ background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .9rem; }}
.slm .tile b {{ display: block; font-size: 1.4rem; font-weight: 600; overflow-wrap: anywhere; }}
.slm .tile span {{ color: var(--soft); font-size: .85rem; display: block; }}
.slm .wide {{ overflow-x: auto; background: linear-gradient(to left, var(--paper) 30%, transparent) right / 3rem 100%
  no-repeat local, linear-gradient(to left, var(--line), transparent) right / .8rem 100% no-repeat scroll; }}
.slm pre .whole {{ display: inline-block; max-width: 100%; }}
.slm table {{ border-collapse: collapse; margin: .5rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }}
.slm table.roomy {{ min-width: 38rem; }}
.slm .wide:focus-visible {{ outline: 2px solid var(--accent); }}
.slm th, .slm td {{ text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; background: none; color: inherit; }}
.slm th {{ font-weight: 600; }}
.slm tbody th {{ font-weight: 400; }}
.slm td.number, .slm th.number {{ text-align: right; white-space: nowrap; }}
.slm tr.ours > * {{ font-weight: 700; }}
.slm pre, .slm code {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .88em; background: none; color: inherit; }}
.slm p code {{ white-space: nowrap; }}
.slm pre {{ background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; max-width: 100%; }}
.slm .prompt {{ color: var(--accent); font-weight: 600; }}
.slm details > summary {{ cursor: pointer; color: var(--accent); margin: .4rem 0; }}
.slm .charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.4rem 1.2rem; align-items: end; }}
.slm figure.chart {{ margin: .4rem 0; max-width: 42rem; }}
.slm figure.chart > svg {{ width: 100%; height: auto; display: block; overflow: visible; }}
.slm figure.chart figcaption {{ font-weight: 600; margin-bottom: .2rem; }}
.slm figure.chart figcaption small {{ font-weight: 400; display: block; }}
.slm svg text {{ fill: var(--soft); font-size: 12px; }}
.slm svg text.label {{ font-weight: 600; }}
.slm svg .grid {{ stroke: var(--line); stroke-width: 1; }}
.slm svg .mark {{ stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }}
.slm svg .curve {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
.slm svg .faint {{ stroke-width: 1; opacity: .55; }}
"""
_PAGE_STYLE = """
body { margin: 0; }
.slm main { max-width: 62rem; margin: 0 auto; padding: 1.6rem 1.1rem 3rem; }
.slm footer { color: var(--soft); font-size: .85rem; margin-top: 2.5rem; border-top: 1px solid var(--line); }
@media print { .slm details { display: block; } }
"""


def is_ours(content: bytes) -> bool:
    """Whether a file is a page or a card as slm writes them; any other one is never overwritten."""
    first = content.split(b"\n", 1)[0].rstrip()
    return first.endswith(MARKER.encode()) or content.rstrip().endswith(CARD_MARKER.encode())


def escaped(text: object) -> str:
    """Text as it may stand in HTML, also inside a quoted attribute."""
    return html.escape(harmless(str(text)), quote=True)


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page. title: plain text. body, style, script: HTML, CSS and JavaScript of our own, used as they are."""
    code = f"<script>{script}</script>\n" if script else ""
    return (
        f"<!doctype html> {MARKER}\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}{_PAGE_STYLE}{style}</style>\n</head>\n"
        f'<body class="slm">\n<main>\n{body}\n</main>\n{code}</body>\n</html>\n'
    )


def fragment(body: str, *, style: str = "") -> str:
    """The same inside a notebook's cell."""
    return f'<style>{STYLE}{style}</style><div class="slm">{body}</div>'


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    numbers: Sequence[int] = (),
    ours: int | None = None,
) -> str:
    """A table of cells of HTML, each row named by its first cell; on a narrow screen it moves sideways.

    numbers: columns that hold numbers. ours: the row to point out, which is bold.
    """

    def cell(tag: str, column: int, content: str, scope: str = "") -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{scope}{kind}>{content}</{tag}>"

    lines = []
    for number, row in enumerate(rows):
        kind = ' class="ours"' if number == ours else ""
        first, *others = row
        cells = cell("th", 0, first, ' scope="row"') + "".join(cell("td", i, one) for i, one in enumerate(others, 1))
        lines.append(f"<tr{kind}>{cells}</tr>")
    names = "".join(cell("th", i, escaped(name), ' scope="col"') for i, name in enumerate(header))
    head = f"<thead><tr>{names}</tr></thead>" if header else ""
    told = f'<p class="soft">{escaped(caption)}</p>' if caption else ""
    size = ' class="roomy"' if len(header) > 3 else ""
    label = f' aria-label="{escaped(caption or ", ".join(header))}"' if header else ""
    return (
        f'{told}<div class="wide"{f""" tabindex="0" role="region"{label}""" if header else ""}>'
        f"<table{size}{label}>{head}<tbody>{''.join(lines)}</tbody></table></div>"
    )


def written(prompt: str, text: str) -> str:
    """What a model wrote, after a prompt that stands out. Both are plain text."""
    return f'<pre><span class="prompt">{escaped(prompt)}</span>{escaped(text)}</pre>'


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Numbers in large type, each with what it is below it. Both are plain text."""
    shown = "".join(f'<div class="tile"><b>{escaped(n)}</b><span>{escaped(told)}</span></div>' for n, told in numbers)
    return f'<div class="tiles">{shown}</div>'


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """What opens at a click. summary: plain text; body: HTML."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}</summary>{body}</details>"
