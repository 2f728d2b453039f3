"""Text tables of spreadsheets and annotation tools, with any separator. Messages name the line, and
an encoding other than UTF-8."""

import csv
import os
import re
from collections.abc import Iterator

from atst_jax.audio.formats import is_audio
from atst_jax.util import storage
from atst_jax.util.errors import UserError

SEPARATORS = "\t;,"
# the first bytes of recordings
SOUND = rb"RIFF.{4}WAVE|FORM.{4}AIF|fLaC[\x00\x80]|OggS\x00|ID3[\x02-\x04]|caff\x00"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Table:
  """A table with a header, open for reading once.

  Attributes:
    path: of the file.
    header: names of the columns, stripped.
  """

  def __init__(self, path: str):
    """Raises UserError for a file that is no table in UTF-8, or that is empty."""
    self.path = path
    self._lines = self._values()
    self.header = [name.strip() for _, names in [next(self._lines, (1, []))] for name in names]
    if not self.header:
      raise UserError(f"{path} line 1: the file is empty, or begins with an empty line")

  def __iter__(self) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, values) of every row that is not blank; quoted values may hold
    separators and newlines. Raises UserError for a row of another length than the header's."""
    for line, values in self._lines:
      if not any(map(str.strip, values)):
        continue
      if len(values) != len(self.header):
        raise UserError(
          f"{self.path} line {line}: {len(values)} values, {len(self.header)} columns in the "
          "header; quote values that hold a separator"
        )
      yield line, values

  def _values(self) -> Iterator[tuple[int, list[str]]]:
    line = 1
    try:
      with storage.open_text(self.path, "utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=separator_of(head), strict=True)
        for values in reader:
          yield line, values
          line = reader.line_num + 1
    except csv.Error as error:
      raise UserError(f"{self.path} line {line}: {error}; is a quote left open?") from error
    except UnicodeDecodeError as error:
      raise UserError(not_utf8(self.path)) from error
    except OSError as error:
      raise UserError(f"cannot read {self.path}: {error.strerror}") from error


def separator_of(head: str) -> str:
  """The separator of a table with this first line: a tab, or what occurs most of ';' and ','."""
  return max(SEPARATORS, key=lambda one: (one == "\t" and one in head, head.count(one), one == ","))


def is_recording(path: str) -> bool:
  """Whether a file is no table but a sound, by its ending or its first bytes."""
  if is_audio(path):
    return True
  try:
    with storage.open_binary(path) as file:
      return re.match(SOUND, file.read(12), re.DOTALL) is not None
  except OSError:  # whoever reads the table says so
    return False


def not_utf8(path: str) -> str:
  """The message about a text file that is not UTF-8."""
  with storage.open_binary(path) as file:
    utf16 = file.read(2) in UTF16
  encoding = "UTF-16" if utf16 else "WINDOWS-1252"
  kind = "is UTF-16" if utf16 else "is not UTF-8 (perhaps Latin-1, as Excel on Windows writes it)"
  name = os.path.basename(path)
  return f"{path} {kind}; convert it: iconv -f {encoding} -t UTF-8 {name} > utf8_{name}"
