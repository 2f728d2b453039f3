"""Parts of a file that libsndfile does not read: further streams, and lengths that a header
promises, leaves open or does not tell. Nothing is decoded.

libsndfile reads the first of several streams in a row (Ogg links, FLACs, MP3s) and does not tell of
the others, nor of a file that was cut. It takes the length of an MP3 without a count from the
bitrate of its first frame. It rounds ADPCM and GSM up to whole blocks.
"""

import collections
import dataclasses
import functools
import os
import re
import struct
from collections.abc import Iterator

from .formats import chunks, samples_behind

CHUNK = 1 << 20  # bytes read at once
FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker and the head of STREAMINFO
OPEN_SIZES = (0, 0x7F000000, 0x7FFFFFFF, 0xFFFFFFFF)  # of files written into a pipe, about
OPEN_MARGIN = 1 << 16
MOST_BYTES = 1 << 60  # a larger size is open too
BLOCK_CODECS = (0x02, 0x11, 0x31)  # ADPCM of Microsoft and of IMA, GSM: their `fact` counts samples
W64_RIFF = bytes.fromhex("2e91cf11a5d628db")  # of its 12 bytes
W64_DATA = bytes.fromhex("f3acd3118cd100c04f8edb8a")
IN_A_ROW = 3  # frames of one kind, which noise does not make
MPEG = re.compile(rb"\xff(?=[\xe2-\xe7\xf2-\xff][\x10-\xef])")  # a frame begins, perhaps
# kbit/s by whether it is version 1, and layer.
BITRATES = {
  (True, 1): range(32, 449, 32),
  (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
  (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
  (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
  (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
BITRATES[False, 3] = BITRATES[False, 2]
MPEG_RATES = (44100, 48000, 32000)  # Hz, of version 1
Frame = collections.namedtuple("Frame", "kind bitrate mono rate samples size")  # of MPEG audio


@dataclasses.dataclass(frozen=True)
class Streams:
  """The streams of a file.

  Attributes:
    several: whether it is several WAVs in a row, which no library reads.
    more: whether further streams follow the first.
    open_length: whether the header leaves the length open.
    uncounted: whether it is an MP3 of various frames that its header does not count.
    unended: whether it is an Ogg that ends before its stream does.
    present: share of the bytes promised by the header that the file has; above 1 if samples follow
      them in a WAV.
    promised: samples of all streams at the first one's rate, of several FLACs by their headers, of
      an MP3 without a count by its frames; None for other files.
    fact: samples of sound by the header of a codec of whole blocks.
  """

  several: bool = False
  more: bool = False
  open_length: bool = False
  uncounted: bool = False
  unended: bool = False
  present: float = 1.0
  promised: int | None = None
  fact: int | None = None


def look(file) -> Streams:
  """Looks at a file that is open for reading bytes."""
  end = file.seek(0, os.SEEK_END)
  file.seek(0)
  head = file.read(12)
  if head[:4] == b"OggS":
    return _ogg(file, end)
  if head[:4] == b"fLaC":
    return _flac(file)
  if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
    return _wav(file, end)
  if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
    return _cut_chunks(file, end, 12, ">4sI", b"SSND")
  if head == b"riff" + W64_RIFF:
    return _cut_chunks(file, end, 40, "<16sQ", b"data" + W64_DATA)
  if head[:4] in (b".snd", b"dns.") and len(head) == 12:
    place, size = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:])
    return Streams(present=_present(size, place, end))
  if head[:3] == b"ID3" or _frame(head[:4]):
    return _mpeg(file, end)
  return Streams()


def _present(size: int, place: int, end: int) -> float:
  """The share of `size` bytes from `place` on that lie before `end`; 1 if the size is open."""
  there = max(end - place, 0)
  is_open = any(abs(size - value) <= OPEN_MARGIN for value in OPEN_SIZES[1:]) or size > MOST_BYTES
  return 1.0 if size <= there or is_open else there / size


def _cut_chunks(file, end: int, place: int, form: str, name: bytes) -> Streams:
  """Of a file of chunks whose samples are in the chunk `name`."""
  for found, begin, size in chunks(file, end, place, form):
    if found == name:
      return Streams(present=_present(size, begin, end))
  return Streams()


def _ogg(file, end: int) -> Streams:
  """All streams of one link begin on its first pages."""
  place, begun, more, ended, whole = 0, False, False, False, True
  while whole:
    file.seek(place)
    head = file.read(27)
    if len(head) < 27:
      break
    if head[:4] != b"OggS":  # what follows is no Ogg, or damaged
      return Streams(more=more)
    begins = bool(head[5] & 2)
    more, begun = more or (begins and begun), begun or not begins
    sizes = file.read(head[26])
    place += 27 + head[26] + sum(sizes)
    whole = place <= end
    ended = whole and bool(head[5] & 4)
  return Streams(more=more, unended=not ended)


def _flac(file) -> Streams:
  found = [_flac_length(file, place) for place in (0, *_flac_places(file))]
  told = [length * found[0][1] / rate for length, rate in found if length and rate]
  more = len(found) > 1
  promised = round(sum(told)) if more and len(told) == len(found) else None
  return Streams(more=more, open_length=found[0][0] == 0, promised=promised)


def _flac_length(file, place: int) -> tuple[int | None, int]:
  """(samples, Hz) by the header of the stream at `place`; 0 samples if it leaves them open, None if
  it is cut."""
  file.seek(place + 8)
  info = file.read(34)
  if len(info) < 34:
    return None, 0
  return int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF, int.from_bytes(info[10:13], "big") >> 4


def _flac_places(file) -> list[int]:
  """The places where the streams behind the first one begin."""
  place, kept, found = 4, b"", []
  file.seek(place)
  while block := file.read(CHUNK):
    text = kept + block
    found += [place - len(kept) + match.start() for match in FLAC.finditer(text)]
    place, kept = place + len(block), text[-7:]  # a byte less than a marker and its head
  return found


def _wav(file, end: int) -> Streams:
  fact, codec, long = None, 0, 0
  for name, place, size in chunks(file, end):
    if name == b"fmt ":
      codec = int.from_bytes(file.read(2), "little")
    elif name == b"fact" and codec in BLOCK_CODECS:
      fact = int.from_bytes(file.read(4), "little") or None
    elif name == b"ds64":  # of RF64
      long = int.from_bytes(file.read(16)[8:], "little")
    elif name == b"data":
      if size == 0xFFFFFFFF:
        size = long or size
      behind = place + size + size % 2
      several = False
      if behind < end:
        file.seek(behind)
        several = file.read(4) == b"RIFF"
      present = _present(size, place, end)
      if size and not several and not long:
        present += samples_behind(file, place, size, end) / size
      return Streams(several, present=present, fact=fact)
  return Streams()


@functools.lru_cache(4096)
def _frame(head: bytes) -> Frame | None:
  """The frame of MPEG audio that begins with these 4 bytes; None if none does."""
  if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
    return None
  version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # version 3 is MPEG 1, 2: 2, 0: 2.5
  number, rate = head[2] >> 4, head[2] >> 2 & 3
  if version == 1 or layer == 4 or not 0 < number < 15 or rate == 3:
    return None
  first, padding = version == 3, head[2] >> 1 & 1
  rate = MPEG_RATES[rate] >> (0, 1, 2)[(3, 2, 0).index(version)]
  bitrate = BITRATES[first, layer][number - 1]
  if layer == 1:
    samples, size = 384, 4 * (12_000 * bitrate // rate + padding)
  else:
    samples = 1152 if first or layer == 2 else 576
    size = samples // 8 * 1000 * bitrate // rate + padding
  return Frame((version, layer, rate), bitrate, head[3] >> 6 == 3, rate, samples, size)


def _after_id3(file, place: int) -> int:
  """Where what follows an ID3v2 tag begins; `place` if there is none."""
  file.seek(place)
  head = file.read(10)
  if head[:3] != b"ID3" or len(head) < 10:
    return place
  size = 0
  for byte in head[6:]:
    size = size << 7 | byte & 0x7F
  return place + 10 + size


def _mpeg(file, end: int) -> Streams:
  start = _after_id3(file, 0)
  file.seek(start)
  head = file.read(192)
  place = max(head.find(b"Xing"), head.find(b"Info"))
  if _frame(head[:4]) and 0 < place <= len(head) - 16 and head[place + 7] & 1:
    size = int.from_bytes(head[place + 12 : place + 16], "big") if head[place + 7] & 2 else 0
    return Streams(more=bool(size) and _mpeg_goes_on(file, start + size))
  seconds, size, kinds = 0.0, 0, {}
  for frame in _frames(file, start, end):
    seconds, size = seconds + frame.samples / frame.rate, size + frame.size
    kinds[frame[:3]] = frame.rate
  if not kinds or size < (end - start) / 2:  # of an odd encoder, not all were found
    return Streams()
  return Streams(uncounted=len(kinds) > 1, promised=round(seconds * next(iter(kinds.values()))))


def _mpeg_goes_on(file, place: int) -> bool:
  """Whether frames follow at `place`, behind the bytes that the first frame, Xing's or LAME's,
  tells of."""
  file.seek(place)
  if file.read(3) == b"TAG":  # ID3v1
    place += 128
  file.seek(_after_id3(file, place))
  return _frame(file.read(4)) is not None


def _frames(file, place: int | None, end: int) -> Iterator[Frame]:
  """Yields the whole frames from `place` on, whatever lies between them."""
  while place is not None:
    file.seek(place)
    if (frame := _frame(file.read(4))) is None:
      place = _next_frame(file, place + 1)
    elif place + frame.size > end:
      return
    else:
      yield frame
      place += frame.size


def _in_a_row(file, place: int) -> bool:
  """Whether IN_A_ROW frames of one kind begin at `place`, or fewer up to the file's end."""
  kinds = set()
  for _ in range(IN_A_ROW):
    file.seek(place)
    head = file.read(4)
    if kinds and len(head) < 4:
      return True
    if not (frame := _frame(head)) or len(kinds | {frame.kind}) > 1:
      return False
    kinds.add(frame.kind)
    place += frame.size
  return True


def _next_frame(file, place: int) -> int | None:
  """The first place from `place` on where frames follow each other."""
  file.seek(place)
  while len(block := file.read(CHUNK)) > 3:
    for match in MPEG.finditer(block):
      if _in_a_row(file, place + match.start()):
        return place + match.start()
    place += len(block) - 3
    file.seek(place)
  return None
