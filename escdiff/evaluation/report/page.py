"""A report as one HTML page that needs nothing else, and as Markdown.

Pictures and figures are inside the page; its own policy forbids it to fetch anything.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.evaluation.report.writing import write

THUMB = 160  # pixels of a picture within the page
SHOWN = 48  # cards of a section: the worst
LINKED = 6  # of them in the Markdown
COLOR = re.compile(r"#[0-9a-f]{6}")
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Table:
    """Rows of plain text; a click on a head sorts them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """One case.

    Attributes:
        pictures: caption -> path below the report's folder.
        facts: (name, text), shown on hover; a text such as #aa00ff comes with its colour.
        wrong: what to mark.
    """

    title: str
    pictures: Mapping[str, str]
    facts: Sequence[tuple[str, str]] = ()
    wrong: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One task. `cards` come worst first; `figures`: caption -> path of a picture or SVG."""

    name: str
    about: str = ""
    tables: Sequence[Table] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    cards: Sequence[Card] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report; `config` is the run's exact configuration."""

    title: str
    about: str
    sections: Sequence[Section]
    config: Mapping[str, Any]
    note: str = ""


def write_pages(report: Report, out: Path, name: str = "report") -> None:
    """Write `{name}.html` and `{name}.md` into `out`, below which the pictures lie."""
    write(out / f"{name}.html", html(report, out))
    write(out / f"{name}.md", markdown(report))


def html(report: Report, root: Path) -> str:
    """The report as one file, with its pictures and styles inside."""
    links = "".join(f'<a href="#{escape(s.name)}">{escape(s.name)}</a>' for s in report.sections)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return "\n".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        f"<title>{escape(report.title)}</title><style>{_asset('page.css')}</style></head><body>",
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.about)}</p></header>",
        f"<nav>{links}</nav>" if len(report.sections) > 1 else "",
        *(_section(section, root) for section in report.sections),
        f"<p class=note>{escape(report.note)}</p>" if report.note else "",
        f"<details><summary>Exact configuration</summary><pre>{escape(_json(report.config))}</pre></details>",
        f"<script>{_asset('page.js')}</script></body></html>\n",
    ])  # fmt: skip


def markdown(report: Report) -> str:
    """The report as Markdown, with links to its figures."""
    parts = [f"# {report.title}", report.about]
    for section in report.sections:
        parts += [f"## {section.name}", section.about, *(_table_md(table) for table in section.tables)]
        parts += [f"![{caption}]({path})" for caption, path in section.figures.items()]
        parts += [section.note]
        if section.cards:
            parts.append(f"The worst of {len(section.cards)}:")
        for card in section.cards[:LINKED]:
            images = " ".join(f"![{caption}]({path})" for caption, path in card.pictures.items())
            facts = ", ".join([*card.wrong, *(f"{name} {text}" for name, text in card.facts)])
            parts.append(f"{images}  \n`{card.title}`  \n{facts}")
    parts += [report.note, "## Exact configuration", f"```json\n{_json(report.config)}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, root: Path) -> str:
    figures = "".join(
        f'<figure class=plot><img src="{_embed(root / path, 0)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in section.figures.items()
    )
    more = len(section.cards) - SHOWN
    left = f"<p class=note>The {SHOWN} worst of {len(section.cards)}.</p>" if more > 0 else ""
    cards = "".join(_card(card, root) for card in section.cards[:SHOWN])
    return "\n".join([
        f'<section id="{escape(section.name)}"><h2>{escape(section.name)}</h2>',
        f"<p>{escape(section.about)}</p>" if section.about else "",
        *(_table(table) for table in section.tables), figures,
        f"<p class=note>{escape(section.note)}</p>" if section.note else "", left,
        f"<div class=cards>{cards}</div>" if cards else "", "</section>",
    ])  # fmt: skip


def _table(table: Table) -> str:
    head = "".join(f"<th scope=col><button>{escape(cell)}</button></th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _table_md(table: Table) -> str:
    clean = [[cell.replace("|", "\\|") for cell in row] for row in (table.head, *table.rows)]
    rows = [clean[0], ["---", *["---:"] * (len(table.head) - 1)], *clean[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _card(card: Card, root: Path) -> str:
    pictures = "".join(
        f'<figure><img loading=lazy src="{_embed(root / path, THUMB)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in card.pictures.items()
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{_fact(text)}</dd>" for name, text in card.facts)
    wrong = "".join(f"<li>{escape(mistake)}</li>" for mistake in card.wrong)
    return (
        f"<article tabindex=0><div class=pictures>{pictures}</div><p>{escape(card.title)}</p>"
        f"{f'<ul>{wrong}</ul>' if wrong else ''}{f'<dl>{facts}</dl>' if facts else ''}</article>"
    )


def _fact(text: str) -> str:
    swatch = f'<i style="background:{text}"></i>' if COLOR.fullmatch(text) else ""
    return swatch + escape(text)


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _embed(path: Path, size: int) -> str:
    """A data address of a picture, no larger than `size` where that is not 0."""
    kind, data = "svg+xml", path.read_bytes()
    if path.suffix != ".svg":
        kind, buffer = "webp", io.BytesIO()
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            if size:
                picture.thumbnail((size, size))
            picture.save(buffer, "WEBP", quality=82)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=1, ensure_ascii=False, default=str)
