"""Markdown to one self-contained page: images inside, nothing fetched, the same bytes each time."""

import base64
import re
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  color: #222; background: #fff; margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .6rem; border-bottom: 1px solid #ddd;
  padding-bottom: .2rem; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; }
th, td { padding: .32rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; white-space: nowrap; }
td.n { text-align: right; white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; margin: 1.4rem 0 .4rem; }
p.caption { font-size: .86rem; color: #444; max-width: 52rem; }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto; font-size: .84rem; }
code { font-size: .92em; }
nav { background: #f7f7f7; padding: .6rem 1.2rem; margin: 1.2rem 0; font-size: .92rem; }
nav ul { margin: .2rem 0; padding-left: 1.1rem; }
.verdict { font-weight: 600; padding: .05rem .4rem; border-radius: .25rem; white-space: nowrap; }
.confirmed { background: #d6efe6; color: #00543c; }
.refuted { background: #fbdcc8; color: #7a2f00; }
.undecided { background: #e9e9e9; color: #444; }
@media print { body { max-width: none; } nav { display: none; } h2 { break-after: avoid; }
  img, tr { break-inside: avoid; } }
"""
_VERDICT = re.compile(r"<strong>(confirmed|refuted|undecided)</strong>")
_IMAGE = re.compile(r'<img src="([^"]+)"')
_HEADING = re.compile(r"<h([23])>(.*?)</h\1>")
_NUMBER = re.compile(r"<td>([−+]?[\d.,]+(?:e[−+-]?\d+)?)</td>")
_CAPTION = re.compile(
    r"<p><strong>((?:Figure|Overview|α below the rank|The learning rate|"
    "Accuracy against cost|Learning curves))"
)


def page(markdown: str, folder: Path) -> str:
    """Render a report as one HTML page.

    Args:
        markdown: the report; its first line is the title.
        folder: where its images lie.
    """
    title = markdown.splitlines()[0].lstrip("# ")
    # Without HTML in the source, what a trial said when it failed cannot become markup.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = _IMAGE.sub(lambda found: f'<img src="{_inside(folder, found[1])}"', body)
    body = _VERDICT.sub(r'<span class="verdict \1">\1</span>', body)
    body = _NUMBER.sub(r'<td class="n">\1</td>', body)
    body = _CAPTION.sub(r'<p class="caption"><strong>\1', body)
    body = body.replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")
    body, contents = _contents(body)
    head, rest = body.split("</h1>", 1)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{head}</h1>\n{contents}\n{rest}</body>\n</html>\n"
    )


def _inside(folder: Path, link: str) -> str:
    image = folder / unquote(unescape(link))
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"


def _contents(body: str) -> tuple[str, str]:
    """Give headings anchors, and list those of the second level."""
    listed: list[str] = []
    number = 0

    def anchor(found: re.Match[str]) -> str:
        nonlocal number
        number += 1
        if found[1] == "2":
            listed.append(f'<li><a href="#s{number}">{found[2]}</a></li>')
        return f'<h{found[1]} id="s{number}">{found[2]}</h{found[1]}>'

    anchored = _HEADING.sub(anchor, body)
    return anchored, f"<nav><ul>{''.join(listed)}</ul></nav>"
