"""The page that `inspect` writes: one file, no script, nothing fetched."""

import html
from pathlib import Path
from typing import Any

from escdiff.support.files import write_atomic

LISTED = 50  # broken samples
HEADS = {
    "side": "Smaller side, pixels",
    "aspect": "Width / height",
    "format": "Format of the file",
    "words": "Caption, words",
    "licence": "Licence",
    "category": "Category",
    "mask": "Mask, share of the picture",
    "brightness": "Brightness",
    "saturation": "Saturation",
    "hue": "Main hue",
}
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.05em; margin: 0 0 .4em }
.counts { display: grid; grid-template-columns: repeat(auto-fill, minmax(21em, 1fr)); gap: 1.5em; margin: 1.5em 0 }
table { border-collapse: collapse; width: 100% } td { padding: 1px 6px 1px 0; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums; width: 4em } td.bar { width: 45% }
td.bar div { background: #4a7ab5; height: .8em; margin-top: .25em }
.sheet { display: flex; flex-wrap: wrap; gap: 8px } figure { margin: 0; width: 96px; font-size: 10px }
figcaption { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: #666 }
pre { background: #f4f4f4; padding: .8em; overflow: auto }
"""


def write_page(path: Path, name: str, summary: dict[str, Any], thumbs: list[list[str]]) -> None:
    """Write counts, contact sheet and broken samples; `thumbs` are (key, base64 of a JPEG, caption)."""
    size = f"{summary['bytes'] / 1e6:,.1f} MB in {summary['shards']} shards"
    aside = ", ".join(f"{count} {kind}" for kind, count in summary["quarantine"].items()) or "nothing"
    broken = summary["broken"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_t(name)}</title><style>{STYLE}</style>",
        f"<h1>{_t(name)}</h1><p>{summary['samples']:,} samples, {size}; {len(broken)} of them broken; "
        f"in quarantine: {_t(aside)}.</p>",
        '<div class="sheet">', *(_figure(*thumb) for thumb in thumbs), "</div>",
        '<div class="counts">', *(_table(head, summary[key]) for key, head in HEADS.items()), "</div>",
    ]  # fmt: skip
    if broken:
        more = f"<p>and {len(broken) - LISTED} more</p>" if len(broken) > LISTED else ""
        rows = "".join(f"<tr><td>{_t(key)}<td>{_t(why)}" for key, why in broken[:LISTED])
        parts.append(f"<h2>Broken</h2><table>{rows}</table>{more}")
    options = "\n".join(f"{k}: {v}" for k, v in summary["options"].items())
    parts.append(f"<h2>Made with</h2><pre>{_t(options)}</pre></html>")
    write_atomic(path, "\n".join(parts).encode("utf-8", "replace"))


def _figure(key: str, picture: str, caption: str) -> str:
    text = _t(caption or key)
    return (
        f'<figure title="{text}"><img alt="{_t(key)}" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _table(head: str, counts: dict[str, int]) -> str:
    most = max(counts.values(), default=1)
    rows = "".join(
        f'<tr><td>{_t(name)}<td class="n">{count:,}<td class="bar"><div style="width:{100 * count / most:.1f}%"></div>'
        for name, count in sorted(counts.items(), key=_order)
    )
    return f"<section><h2>{_t(head)}</h2><table>{rows}</table></section>"


def _order(item: tuple[str, int]) -> tuple:
    """Ranges by their start, words by how many there are."""
    words = item[0].split()
    try:
        return (0, 0.0, float(words[1])) if words[0] == "under" else (0, 1.0, float(words[words[0] == "from"]))
    except (ValueError, IndexError):
        return (1, -item[1], item[0])


def _t(text: Any) -> str:
    return html.escape(str(text))
