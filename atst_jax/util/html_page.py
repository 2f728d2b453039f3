"""Parts of pages that are one file: tables, figures and a shell that lets nothing in from
outside."""

import base64
import html
import os
import tempfile
from collections.abc import Callable

MOST_ROWS = 2000  # of a table
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .8em;border-bottom:1px solid #ddd;text-align:left}
td.n,th.n{text-align:right}svg{display:block;margin:.5em 0}figure{display:inline-block;margin:.3em;font-size:12px}
figcaption{overflow-wrap:anywhere}.wide{max-width:100%;height:auto}.note{color:#8a4500}
summary{cursor:pointer}"""
# The browser itself refuses whatever is not in the page.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def table(head: list, rows: list[list], numbers: int = 0, rest: str = "") -> str:
  """An HTML table; the last `numbers` columns are right-aligned. Values are escaped.

  Args:
    rest: where the rows are that a table of more than MOST_ROWS leaves out.
  """
  place = lambda i: ' class="n"' if i >= len(head) - numbers else ""
  cells = lambda row, tag: "".join(
    f"<{tag}{place(i)}>{html.escape(str(v))}</{tag}>" for i, v in enumerate(row)
  )
  more = (
    f"<p>… and {len(rows) - MOST_ROWS} more{html.escape(rest)}</p>" if len(rows) > MOST_ROWS else ""
  )
  body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[:MOST_ROWS])
  return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>{more}"


def data_uri(content: bytes, kind: str) -> str:
  """Bytes as an address, `kind` being image/png, audio/mpeg, …"""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def paragraph(text: str) -> str:
  """A <p> of plain text, which is escaped."""
  return f"<p>{html.escape(text)}</p>"


def note(text: str) -> str:
  """A paragraph about what is not shown."""
  return f'<p class="note">{html.escape(text)}</p>'


def picture(draw: Callable[[str], None], alt: str) -> str:
  """The PNG that draw(path) writes, as an element of the page."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "picture.png")
    draw(path)
    with open(path, "rb") as file:
      return (
        f'<img class="wide" alt="{html.escape(alt)}" src="{data_uri(file.read(), "image/png")}">'
      )


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
  """A whole page. The title is escaped; the body is HTML."""
  title = html.escape(title)
  code = f"<script>{script}</script>" if script else ""
  return (
    f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}{style}</style></head>'
    f"<body><h1>{title}</h1>{body}{code}</body></html>\n"
  )
