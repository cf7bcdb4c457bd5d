"""Pieces of HTML that need nothing from outside: tables, line charts as SVG, pictures as base64.

Every string is escaped here, so that callers may pass names and settings as they are.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from typing import Any


def escape(value: object) -> str:
    """Return text that is safe in HTML, in attributes too; floats in at most six digits."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return html.escape(text, quote=True)


def facts_table(facts: Mapping[str, Any], caption: str = "") -> str:
    """Return a table of names and values."""
    rows = "".join(
        f"<tr><th style='text-align:left;font-weight:500;padding-right:1.2em'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    head = (
        f"<caption style='text-align:left;font-weight:600'>{escape(caption)}</caption>"
        if caption
        else ""
    )
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def picture(png: bytes, alt: str, caption: str = "") -> str:
    """Return a PNG as a figure inside the page."""
    data = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">{below}</figure>'


def bullets(items: Iterable[object]) -> str:
    """Return a list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
