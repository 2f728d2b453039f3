"""Pages of one file that loads nothing. The jinja2 templates lie beside their modules."""

import base64
import functools

import jinja2
from markupsafe import Markup

from atst_jax.util import storage


@functools.cache
def _templates() -> jinja2.Environment:
  return jinja2.Environment(
    loader=jinja2.PackageLoader("atst_jax", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def render(template: str, **values) -> Markup:
  """A template filled in; every value that is not Markup is escaped.

  Args:
    template: its path in the package, `figures/run_page.html`.
  """
  return Markup(_templates().get_template(template).render(**values))


def _part(name: str, *values, **options) -> Markup:
  return getattr(_templates().get_template("util/parts.html").module, name)(*values, **options)


def table(head: list, rows: list, numbers: int = 0, rest: str = "") -> Markup:
  """A table of at most 2,000 rows; the last `numbers` columns are right-aligned.

  Args:
    rest: says where the omitted rows of a longer table are.
  """
  return _part("table", head, rows, numbers, rest)


def note(text: str) -> Markup:
  """A paragraph about what is not shown."""
  return _part("note", text)


def data_uri(content: bytes, kind: str) -> str:
  """Bytes as an address; `kind` is image/png, audio/mpeg, …"""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(path: str, alt: str) -> Markup:
  """The PNG of a path or address, as an element of the page."""
  with storage.open_binary(path) as file:
    return _part("picture", data_uri(file.read(), "image/png"), alt)
