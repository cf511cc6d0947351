"""Style and building blocks of the pages."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

Marks = Sequence[tuple[str, str]]
"""Text and level of each badge."""
Sign = tuple[str, str, str, str]
"""Level, name, value and meaning."""

LARGEST_PICTURE = 1 << 20
"""Bytes of a picture that is put into the page; what this package draws is far smaller."""
SMALLEST, LARGEST = 1.25, 1.9
"""Pixels of a page to a point of a chart: letters of 7 points stay legible, and no larger than the text."""

STYLE = """<style>
:root{--ground:#f4f6f9;--card:#fff;--ink:#1d2430;--faint:#5d6778;--grid:#dfe4ea;--accent:#0072b2;
--good:#00734f;--good-veil:#e3f4ee;--watch:#8a5a00;--watch-veil:#fdf1d8;--bad:#a8331f;--bad-veil:#fbe6e1;
--shade:#1d243040}
@media (prefers-color-scheme:dark){:root{--ground:#0e1116;--card:#161a21;--ink:#e8ebf0;--faint:#98a2b3;--grid:#2d3440;
--accent:#4aa8e0;--good:#54c9a0;--good-veil:#12291f;--watch:#e8b34b;--watch-veil:#2d2410;--bad:#f08a74;--bad-veil:#331812;
--shade:#e8ebf050}
svg.chart path{filter:brightness(1.35)}}
@media print{:root{--ground:#fff;--card:#fff;--ink:#000;--faint:#444;--grid:#ccc;--accent:#0072b2;
--good:#00734f;--good-veil:#fff;--watch:#8a5a00;--watch-veil:#fff;--bad:#a8331f;--bad-veil:#fff}
figure,.sign,.tile,tr{break-inside:avoid}h1,h2,h3,section>p:not(:last-child){break-after:avoid}
svg.chart path{filter:none}details::details-content{content-visibility:visible;block-size:auto}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}
header{padding:12px 4px 8px}
.eyebrow{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em;font-size:13px}
h1{margin:2px 0 4px;font-size:30px;line-height:1.2;overflow-wrap:anywhere}
h2{margin:0 0 12px;font-size:20px}h3{margin:0 0 4px;font-size:14px}h3.apart{margin-top:22px}
.facts{margin:0 0 8px;color:var(--faint);overflow-wrap:anywhere}
.summary{font-size:18px;line-height:1.5;max-width:62em;margin:14px 0 18px}
.next code{overflow-wrap:anywhere}
.badge{display:inline-block;margin:0 8px 4px 0;padding:1px 10px;border-radius:99px;font-size:13px}
.good{background:var(--good-veil);color:var(--good)}.watch{background:var(--watch-veil);color:var(--watch)}
.bad{background:var(--bad-veil);color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tile,section{background:var(--card);border:1px solid var(--grid);border-radius:12px}
.tile{padding:12px 14px;display:flex;flex-direction:column}
.tile strong{font-size:22px;line-height:1.25}.tile small{color:var(--faint);font-size:12.5px}
section{margin:20px 0 0;padding:20px 20px 22px}
section>p{max-width:70em;margin:0 0 14px}
section>:last-child{margin-bottom:0}section>*+.scroll{margin-top:14px}.wide+p{margin-top:12px}
.wide,.scroll{overflow-x:auto;background:linear-gradient(90deg,var(--card) 14px,transparent 28px) left/28px 100% local,
linear-gradient(270deg,var(--card) 14px,transparent 28px) right/28px 100% local,
linear-gradient(90deg,var(--shade),transparent) left/12px 100%,
linear-gradient(270deg,var(--shade),transparent) right/12px 100%;background-repeat:no-repeat}
.wide svg{display:block;max-width:100%;height:auto;margin:0 auto}.wide svg.chart{min-width:620px}
.wide img{max-width:none;border-radius:6px}.wide .nm-ground,.scroll .nm-ground{fill:none}
.scroll th,.scroll td{overflow-wrap:break-word}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:22px 28px}
figure{margin:0;min-width:0}figcaption{color:var(--faint);font-size:13px}
svg.chart{display:block;width:100%;height:auto;color:var(--ink);max-width:1100px}
svg.chart text{font-family:inherit!important}
.signs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:14px;margin:0 0 24px}
.sign{border-radius:10px;padding:12px 14px;border-left:4px solid currentColor}
.sign p{margin:0;color:var(--ink);font-size:13.5px}.sign .value{font-size:18px;font-weight:600;margin:0 0 4px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th:first-child,td:first-child{padding-left:0}
th{color:var(--faint);font-weight:600;text-align:left}
th,td{padding:4px 0 4px 14px;border-bottom:1px solid var(--grid);vertical-align:top;overflow-wrap:anywhere}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th.number{white-space:normal;overflow-wrap:break-word}.number+:not(.number){padding-left:30px}
tr.kept td{font-weight:600}tr.lost td{color:var(--faint)}
.bars td{overflow-wrap:anywhere;vertical-align:middle}.bar{width:38%}.bars td:first-child{min-width:6.5em}
.bar span{display:block;height:10px;border-radius:5px;background:var(--accent);min-width:2px}
dl{display:grid;grid-template-columns:fit-content(45%) minmax(0,1fr);gap:3px 18px;margin:0;font-size:14px}
dt{color:var(--faint);min-width:min(130px,100%);overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
pre{margin:0 0 14px;padding:12px 14px;border-radius:8px;background:var(--ground);overflow-x:auto;font-size:13px;
white-space:pre-wrap;overflow-wrap:anywhere}
code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
a{color:var(--accent)}details{margin-top:12px}summary{cursor:pointer;color:var(--accent)}
@media print{body{font-size:12px}main{max-width:none;padding:0}.summary{font-size:15px}h1{font-size:24px}
section{padding:12px 14px;margin-top:14px}.charts{grid-template-columns:1fr 1fr;gap:14px 20px}
.signs{grid-template-columns:1fr 1fr}.tiles{grid-template-columns:repeat(3,1fr)}table,pre,code,dl{font-size:11px}
.wide img{max-width:100%}.wide div,.scroll div,.wide svg.chart{min-width:0!important}.wide,.scroll{background:none}
details pre{columns:2}p{widows:3;orphans:3}
.scroll table{min-width:0!important}
td:not(.number){overflow-wrap:anywhere!important}th,.number{overflow-wrap:break-word!important}
.scroll td.number{white-space:normal}.scroll th,.scroll td{padding-left:8px}}
@media (max-width:520px){main{padding:14px 10px 40px}section{padding:16px 12px}h1{font-size:24px}
dl{grid-template-columns:1fr}dd{margin-bottom:6px}.summary{font-size:16.5px}}
</style>"""


def page(title: str, parts: Sequence[str]) -> str:
    """Returns the whole page; parts (HTML) that are empty are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · nas_moreau</title>{STYLE}</head>\n<body><main>\n"
        f"{body}\n</main></body></html>\n"
    )


def header(kind: str, title: str, facts: Sequence[str], summary: str, inside: str = "", marks: Marks = ()) -> str:
    """Returns the head of a page.

    Args:
        kind: What the page is ("report", "comparison"), above the title.
        title: The name of what it is about.
        facts: Short settings, below the title.
        summary: The outcome in a sentence or two; "" for none.
        inside: HTML after it.
        marks: Text and level ("good", "watch", "bad") of each badge.
    """
    badges = "".join(f'<span class="badge {level}">{escape(text)}</span>' for text, level in marks)
    return (
        f"<header><p class=eyebrow>nas_moreau {escape(kind)}</p><h1>{escape(title)}</h1>"
        f"<p class=facts>{escape(' · '.join(facts))}</p>"
        + (f"<p>{badges}</p>" if badges else "")
        + (f"<p class=summary>{escape(summary)}</p>" if summary else "")
        + f"{inside}</header>"
    )


def command_line(reason: str, command: str) -> str:
    """Returns a paragraph with a command to copy, after what it is for."""
    return f"<p class=next>{escape(reason)}: <code>{escape(command)}</code></p>"


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Returns a row of cards, each a value with its title and a note."""
    shown = "".join(
        f"<div class=tile><strong>{escape(value)}</strong>"
        f"<span>{escape(title)}</span><small>{escape(note)}</small></div>"
        for value, title, note in numbers
    )
    return f'<div class="tiles">{shown}</div>'


def signs(found: Sequence[Sign]) -> str:
    """Returns a grid of cards for (level, name, value, meaning)."""
    shown = "".join(
        f'<div class="sign {level}"><h3>{escape(name)}</h3><p class=value>{escape(value)}</p>'
        f"<p>{escape(meaning)}</p></div>"
        for level, name, value, meaning in found
    )
    return f'<div class="signs">{shown}</div>' if shown else ""


def paragraph(text: str) -> str:
    """Returns a text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def grid(figures: str) -> str:
    """Returns figures (HTML) side by side."""
    return f'<div class="charts">{figures}</div>'


def details(summary: str, inside: str) -> str:
    """Returns a part (HTML) that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def code(text: str) -> str:
    """Returns a block of code or of a file."""
    return f"<pre><code>{escape(text)}</code></pre>"


def section(key: str, title: str, inside: str) -> str:
    """Returns a card with a heading.

    Args:
        key: The address of the section in the page, `report.html#key`.
        title: The heading.
        inside: HTML.
    """
    return f'<section id="{key}"><h2>{escape(title)}</h2>\n{inside}\n</section>'


def drawing(svg: str) -> str:
    """Returns an SVG of known width that shrinks with the page, but only as far as its texts can be read."""
    found = re.search(r' width="([\d.]+)"', svg)
    narrowest = min(620.0, float(found[1]) if found else 620.0)
    return f'<div class="wide"><div style="min-width:{narrowest:.0f}px">{svg}</div></div>'


def figure(title: str, svg: str, note: str) -> str:
    """Returns a chart (SVG) with its title above and a note below; "" without a chart."""
    if not svg:
        return ""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    found = re.search(r' viewBox="0 0 ([\d.]+) ', svg)
    wide = float(found[1]) if found else 0.0
    limits = f' style="min-width:{SMALLEST * wide:.0f}px;max-width:{LARGEST * wide:.0f}px"' if wide else ""
    shown = f'<div class="scroll"><div{limits}>{svg}</div></div>'
    return f"<figure>{heading}{shown}{caption}</figure>\n"


def picture(path: Path, alt: str) -> str:
    """Returns a PNG file inside the page, in a frame that scrolls; "" if it is missing or larger than a page may be."""
    if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="wide"><img src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'


def breakable(text: str) -> str:
    """Returns a text as HTML whose lines may break after an underscore."""
    return escape(text).replace("_", "_<wbr>")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    bold: Sequence[bool] = (),
    links: Sequence[str | None] = (),
) -> str:
    """Returns a table of texts.

    Args:
        head: Headings.
        rows: A text for each column.
        numbers: The columns that are aligned to the right.
        bold: For each row whether it is emphasised; () for no emphasis.
        links: For each row the address, already quoted, of its first text, or None.
    """

    def cells(tag: str, row: Sequence[str], link: str | None = None) -> str:
        texts = [breakable(text) for text in row]
        if link is not None:
            texts[0] = f'<a href="{escape(link)}">{texts[0]}</a>'
        return "".join(
            f"<{tag}{' class=number' if i in numbers else ''}>{text}</{tag}>" for i, text in enumerate(texts)
        )

    body = "\n".join(
        f"<tr{(' class=kept' if bold[i] else ' class=lost') if bold else ''}>"
        f"{cells('td', row, links[i] if links else None)}</tr>"
        for i, row in enumerate(rows)
    )
    broad = f' style="min-width:{90 * len(head)}px"' if len(head) > 3 else ""
    top = f"<thead><tr>{cells('th', head)}</tr></thead>"
    return f'<div class="scroll"><table{broad}>{top}<tbody>\n{body}\n</tbody></table></div>'


def definition_list(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a list of names and values."""
    return "<dl>" + "".join(f"<dt>{breakable(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"
