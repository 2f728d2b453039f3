"""Audio files by their endings, the library that reads them, and unfinished WAV headers."""

import functools
import importlib.util
import os
import struct
from collections.abc import Iterator

# libsndfile's name of a format, and its endings; without .raw, which has no header, and .mat, which
# seldom holds sound.
SNDFILE = {
  "AIFF": "aif aifc aiff",
  "AU": "au snd",
  "AVR": "avr",
  "CAF": "caf",
  "FLAC": "flac",
  "HTK": "htk",
  "IRCAM": "ircam sf",
  "MP3": "mp3",
  "NIST": "nist sph",
  "OGG": "oga ogg opus",
  "PAF": "paf",
  "PVF": "pvf",
  "RF64": "rf64",
  "SD2": "sd2",
  "SDS": "sds",
  "SVX": "8svx iff svx",
  "VOC": "voc",
  "W64": "w64",
  "WAV": "wav wave",
  "WVE": "wve",
  "XI": "xi",
}
# Sound alone, and films that have a sound track.
PYAV = """3g2 3gp aac ac3 adts amr ape asf avi dsf dts eac3 f4v flv m2ts m4a m4b m4v mka mkv mov mp2
mp3 mp4 mpc mpeg mpg mts oma rm shn tak ts tta webm wma wmv wv"""
GET_PYAV = "pip install -e .[av]"  # in messages about files that PyAV would read
MOST_CHUNKS = 1000  # of a file
BLOCK = 1 << 20  # bytes read at once
NOT_CHUNKS = 64  # so many readable names in a row are chunks, not samples


@functools.cache
def _endings() -> tuple[frozenset[str], frozenset[str]]:
  """The endings that the installed libsndfile reads, and the others, for PyAV."""
  import soundfile

  readable = soundfile.available_formats()
  names = " ".join(endings for name, endings in SNDFILE.items() if name in readable)
  sndfile, pyav = (frozenset(f".{name}" for name in text.split()) for text in (names, PYAV))
  return sndfile, pyav - sndfile


def ending(path: str) -> str:
  """The ending of a file's name, in small letters, with its dot; "" if it has none."""
  return os.path.splitext(path)[1].lower()


def is_audio(path: str) -> bool:
  """Whether a file is audio by its ending, also if PyAV is needed and not installed."""
  return any(ending(path) in endings for endings in _endings())


def needs_pyav(path: str) -> bool:
  """Whether only PyAV reads it: libsndfile does not know the ending."""
  return ending(path) in _endings()[1]


def has_pyav() -> bool:
  """Whether PyAV is installed."""
  return importlib.util.find_spec("av") is not None


def unfinished_wav(file) -> tuple[int, int] | None:
  """Finds a WAV whose recorder did not write the size of the samples, or not that of all.

  Args:
    file: open for reading bytes.

  Returns:
    (place of the data chunk's size, bytes behind it) if that size is 0 and no chunks follow, or if
    there are `samples_behind`; None for every other file.
  """
  file.seek(0)
  head = file.read(12)
  if head[:4] != b"RIFF" or head[8:] != b"WAVE":
    return None
  end = file.seek(0, os.SEEK_END)
  for name, place, size in chunks(file, end):
    if name == b"data":
      behind = end - place
      more = samples_behind(file, place, size, end) if size else behind
      return (place - 4, behind) if more and (size or _are_samples(file, place)) else None
  return None


def chunks(file, end: int, place: int = 12, form: str = "<4sI") -> Iterator[tuple[bytes, int, int]]:
  """Yields (name, where the body begins, its size) of the chunks from `place` on. The file stands
  where the body begins.

  Args:
    end: the file's size.
    form: of a chunk's head. A size of 64 bits counts the head (W64).
  """
  length = struct.calcsize(form)
  counted, align = (length, 8) if form.endswith("Q") else (0, 2)
  for _ in range(MOST_CHUNKS):
    if place + length > end:
      return
    file.seek(place)
    name, size = struct.unpack(form, file.read(length))
    place, size = place + length, max(size - counted, 0)
    yield name, place, size
    place += size + -size % align


def samples_behind(file, place: int, size: int, end: int) -> int:
  """The bytes behind the `size` ones at `place` that a WAV's header tells of, if they are samples:
  no chunk or tag begins there, and not all are zeros. Otherwise 0.

  Args:
    end: the file's size.
  """
  for begin in {place + size, place + size + size % 2}:  # not all writers pad
    if begin + 8 >= end:
      return 0
    name, _ = _chunk(file, begin)
    if _is_readable(name) or name[:3] == b"ID3":
      return 0
  file.seek(place + size)
  while block := file.read(BLOCK):
    if any(block):
      return end - place - size
  return 0


def _is_readable(name: bytes) -> bool:
  return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _chunk(file, place: int) -> tuple[bytes, int]:
  """(name, size) of the chunk that begins there; an empty name at the end of the file."""
  file.seek(place)
  head = file.read(8)
  return struct.unpack("<4sI", head) if len(head) == 8 else (b"", 0)


def _are_samples(file, place: int) -> bool:
  """Whether samples begin there: no sequence of chunks with readable names up to the file's
  end."""
  end = file.seek(0, os.SEEK_END)
  for _ in range(NOT_CHUNKS):
    if place >= end:
      return False
    name, size = _chunk(file, place)
    if not _is_readable(name):
      return True
    place += 8 + size + size % 2
  return True


class Patched:
  """A file open for reading, in which a few bytes are replaced."""

  def __init__(self, file, place: int, data: bytes):
    self._file, self._place, self._data = file, place, data
    self.seek, self.tell = file.seek, file.tell

  def read(self, size: int = -1) -> bytes:
    """As of a file."""
    start = self._file.tell()
    found = self._file.read(size)
    first, last = (
      max(0, min(place - start, len(found)))
      for place in (self._place, self._place + len(self._data))
    )
    skipped = start + first - self._place
    return found[:first] + self._data[skipped : skipped + last - first] + found[last:]
