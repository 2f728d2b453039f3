"""Parts of a file that libsndfile does not read: further streams, and lengths that a header
promises or leaves open. Nothing is decoded.

libsndfile reads the first of several streams in a row (Ogg links, FLACs, MP3s) and does not tell of
the others. It rounds ADPCM and GSM up to whole blocks.
"""

import dataclasses
import os
import re
import struct

CHUNK = 1 << 20  # bytes read at once
MOST_CHUNKS = 1000  # of a WAV
FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker and the head of STREAMINFO
OPEN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # of WAVs written into a pipe, about
OPEN_MARGIN = 1 << 16
BLOCK_CODECS = (0x02, 0x11, 0x31)  # ADPCM of Microsoft and of IMA, GSM: their `fact` counts samples
MPEG_BITRATES = 14  # of a header; 15 is none


@dataclasses.dataclass(frozen=True)
class Streams:
  """The streams of a file.

  Attributes:
    several: whether it is several WAVs in a row, which no library reads.
    more: whether further streams follow the first.
    open_length: whether the header leaves the length open.
    promised: samples by the header, if the file has fewer; of several FLACs the sum of all.
    fact: samples of sound by the header of a codec of whole blocks.
  """

  several: bool = False
  more: bool = False
  open_length: bool = False
  promised: int | None = None
  fact: int | None = None


def look(file) -> Streams:
  """Looks at a file that is open for reading bytes."""
  file.seek(0)
  head = file.read(12)
  if head[:4] == b"OggS":
    return Streams(more=_ogg_links(file))
  if head[:4] == b"fLaC":
    return _flac(file)
  if head[:4] == b"RIFF" and head[8:] == b"WAVE":
    return _wav(file)
  if head[:3] == b"ID3" or _is_mpeg_frame(head):
    return Streams(more=_mp3_goes_on(file))
  return Streams()


def _ogg_links(file) -> bool:
  """Whether a stream begins later than the first pages, on which all streams of one link begin."""
  place, begun = 0, False
  while True:
    file.seek(place)
    head = file.read(27)
    if len(head) < 27 or head[:4] != b"OggS":
      return False
    begins = bool(head[5] & 2)
    if begins and begun:
      return True
    begun = begun or not begins
    sizes = file.read(head[26])
    place += 27 + len(sizes) + sum(sizes)


def _flac(file) -> Streams:
  lengths = [_flac_length(file, place) for place in (0, *_flac_places(file))]
  more = len(lengths) > 1
  promised = sum(filter(None, lengths)) if more and all(lengths) else None
  return Streams(more=more, open_length=lengths[0] == 0, promised=promised)


def _flac_length(file, place: int) -> int | None:
  """Samples by the header of the stream at `place`; 0 if it leaves them open, None if it is cut."""
  file.seek(place + 8)
  info = file.read(34)
  return int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF if len(info) == 34 else None


def _flac_places(file) -> list[int]:
  """The places where the streams behind the first one begin."""
  place, kept, found = 4, b"", []
  file.seek(place)
  while block := file.read(CHUNK):
    text = kept + block
    found += [place - len(kept) + match.start() for match in FLAC.finditer(text)]
    place, kept = place + len(block), text[-7:]  # a byte less than a marker and its head
  return found


def _wav(file) -> Streams:
  end, place, fact, align, codec = file.seek(0, os.SEEK_END), 12, None, 0, 0
  for _ in range(MOST_CHUNKS):
    file.seek(place)
    head = file.read(8)
    if len(head) < 8:
      break
    name, size = struct.unpack("<4sI", head)
    if name == b"fmt ":
      body = file.read(16)
      if len(body) == 16:
        codec, align = struct.unpack("<H10xH2x", body)
    elif name == b"fact" and codec in BLOCK_CODECS:
      body = file.read(4)
      fact = struct.unpack("<I", body)[0] if len(body) == 4 else None
    elif name == b"data":
      behind = place + 8 + size
      is_open = any(abs(size - value) <= OPEN_MARGIN for value in OPEN_SIZES[1:])
      file.seek(behind + size % 2)
      several = behind < end and file.read(4) == b"RIFF"
      promised = size // align if behind > end and not is_open and align else None
      return Streams(several, promised=None if fact else promised, fact=fact or None)
    place += 8 + size + size % 2
  return Streams()


def _is_mpeg_frame(head: bytes) -> bool:
  """Whether these bytes begin a frame of MPEG audio layer III."""
  if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
    return False
  return 0 < head[2] >> 4 <= MPEG_BITRATES and head[2] & 0x0C != 0x0C


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


def _mp3_goes_on(file) -> bool:
  """Whether frames follow the bytes that the first frame, Xing's or LAME's, tells of."""
  start = _after_id3(file, 0)
  file.seek(start)
  frame = file.read(192)
  if not _is_mpeg_frame(frame):
    return False
  place = max(frame.find(b"Xing"), frame.find(b"Info"))
  if place < 0 or place + 16 > len(frame) or frame[place + 7] & 3 != 3:
    return False
  behind = start + int.from_bytes(frame[place + 12 : place + 16], "big")
  file.seek(behind)
  if file.read(3) == b"TAG":  # ID3v1
    behind += 128
  file.seek(_after_id3(file, behind))
  return _is_mpeg_frame(file.read(4))
