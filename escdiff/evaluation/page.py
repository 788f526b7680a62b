"""HTML of the report: plain pages that need no network."""

from collections.abc import Sequence
from html import escape

from escdiff.evaluation import scores
from escdiff.evaluation.records import Record
from escdiff.still_life.oracle import CLASSES

CSS = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; margin-top: 2rem }
.card { border: 1px solid #8884; border-radius: .5rem; padding: .7rem; font-size: 13px }
.pictures { display: flex; gap: .4rem; flex-wrap: wrap }
figure { margin: 0 }
figure img { width: 128px; height: 128px; display: block; border-radius: .3rem }
figcaption, .values { opacity: .75; font-size: 12px }
.wrong { color: #d33; font-weight: 600 }
.swatch { display: inline-block; width: 1em; height: 1em; border-radius: .2em; vertical-align: -.15em }
"""


def document(
    title: str, about: str, body: str, links: Sequence[tuple[str, str, str]] = (), note: str = "",
    home: bool = False, cards: str = "",
) -> str:  # fmt: skip
    """A whole page; `links` are (name, address, what is there), `body` and `cards` are HTML."""
    items = "".join(f'<li><a href="{escape(a)}">{escape(n)}</a>: {escape(w)}</li>' for n, a, w in links)
    return "\n".join([
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{CSS}</style>',
        '<p><a href="report.html">all tasks</a></p>' if home else "",
        f"<h1>{escape(title)}</h1><p>{escape(about)}</p>", f"<ul>{items}</ul>" if items else "", body,
        f"<p>{escape(note)}</p>" if note else "", f'<div class="cards">{cards}</div>' if cards else "", "</html>\n",
    ])  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text."""
    lines = [f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>"
             for tag, row in (("th", head), *(("td", row) for row in rows))]  # fmt: skip
    return f"<table>{''.join(lines)}</table>"


def image(path: str) -> str:
    """A picture at its own size."""
    return f'<p><img src="{escape(path)}" alt="" style="max-width: 100%"></p>'


def card(record: Record) -> str:
    """Pictures, what was asked for, what the oracle read; words that were judged wrong are marked."""
    true = scores.truth(record.request.expected)
    pictures = "".join(
        f'<figure><img loading="lazy" src="{escape(path)}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, path in record.pictures.items()
    )
    words = [_word(name, record.reading[name], true[name], record.values.get(name) == 0) for name in CLASSES]
    values = ", ".join(f"{name} {value:.3g}" for name, value in record.values.items())
    asked = f"<p>{escape(record.request.prompt)}</p>" if record.request.prompt else ""
    colors = f"{_swatch(true['rgb'])} asked, {_swatch(record.reading['rgb'])} read"
    read = f"<p>read: {', '.join(words)}<br>{colors}</p>"
    return f'<div class="card"><div class="pictures">{pictures}</div>{asked}{read}<p class="values">{values}</p></div>'


def _word(name: str, read: str, true: str, wrong: bool) -> str:
    """A word as read; with the expected one where it was judged wrong."""
    label = f"{name} {read}" if name in ("color2", "background") else read
    if not wrong:
        return escape(label)
    return f'<span class="wrong">{escape(label)} (not {escape(true)})</span>'


def _swatch(rgb: Sequence[float]) -> str:
    levels = ", ".join(str(round(255 * v)) for v in rgb)
    return f'<span class="swatch" style="background: rgb({levels})"></span>'
