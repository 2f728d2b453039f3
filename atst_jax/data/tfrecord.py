"""TFRecord files of `tf.train.Example` messages with bytes and int64 features, read and written in
plain Python.

Neither TensorFlow nor protobuf is needed: the framing and the field types used are a few lines
each, and the bytes written depend on nothing but their content.
"""

import itertools
import os
import struct
from collections.abc import Iterator
from typing import IO, Any

import google_crc32c
import numpy as np

from atst_jax.util import storage
from atst_jax.util.errors import UserError


class RecordError(UserError):
  """A shard that is damaged, foreign or of another schema; the message names the file and the
  record."""


CHECKSUM = "{path}: record {number}: checksum of the data does not match"
_SMALL = [bytes((value,)) for value in range(128)]


def _varint(value: int) -> bytes:
  if 0 <= value < 128:
    return _SMALL[value]
  value &= (1 << 64) - 1  # negative int64 as protobuf writes it
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def encode_example(features: dict[str, bytes | str | int | list[int]]) -> bytes:
  """Serialises a tf.train.Example; keys are sorted, so equal features give equal bytes."""
  entries = []
  for key, value in sorted(features.items()):
    if isinstance(value, (bytes, str)):
      value = value.encode() if isinstance(value, str) else value
      feature = _field(1, _field(1, value))  # BytesList
    else:
      ints = [value] if isinstance(value, (int, np.integer)) else value
      feature = _field(3, _field(1, b"".join(_varint(int(i)) for i in ints)))  # Int64List, packed
    entries.append(_field(1, _field(1, key.encode()) + _field(2, feature)))
  return _field(1, b"".join(entries))


def _read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
  """(value below 2^64, where the next thing begins). Raises ValueError beyond 10 bytes, IndexError
  at the end."""
  value = 0
  for shift in range(0, 70, 7):
    byte = data[position]
    position += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value & ((1 << 64) - 1), position  # protobuf drops what does not fit, too
  raise ValueError("varint of more than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:  # a number, or a memoryview
  """Yields (field number, varint or length-delimited payload) of a protobuf message."""

  position = 0
  while position < len(data):
    tag, position = _read_varint(data, position)
    if tag & 7 == 0:
      value, position = _read_varint(data, position)
      yield tag >> 3, value
    elif tag & 7 == 2:
      length, position = _read_varint(data, position)
      if position + length > len(data):
        raise ValueError("field runs past the end of the message")
      yield tag >> 3, data[position : position + length]
      position += length
    else:
      raise ValueError(f"unexpected wire type {tag & 7}")


def _ints(payload: int | memoryview) -> list[int]:
  """An Int64List entry: packed bytes, or one unpacked value."""
  if isinstance(payload, int):
    values = [payload]
  else:
    values, position = [], 0
    while position < len(payload):
      value, position = _read_varint(payload, position)
      values.append(value)
  return [v - (1 << 64) if v >> 63 else v for v in values]


def find_feature(data: bytes, key: bytes) -> tuple[int, int]:
  """(offset, bytes) of a feature of bytes in a serialised tf.train.Example, of which the beginning
  up to it suffices.

  Raises KeyError if it is not there, ValueError or IndexError on bytes that are malformed or end
  before it.
  """

  def enter(position, field):
    """The span (start, size) of the length-delimited field at a position."""
    if data[position] != field << 3 | 2:
      raise ValueError(f"field {data[position] >> 3} where {field} was expected")
    size, start = _read_varint(data, position + 1)
    return start, size

  position, size = enter(0, 1)
  end = position + size
  while position < end:
    entry, size = enter(position, 1)
    position = entry + size
    name, size = enter(entry, 1)
    if data[name : name + size] == key:
      feature, _ = enter(name + size, 2)
      content, _ = enter(feature, 1)
      return enter(content, 1)
  raise KeyError(key.decode())


def decode_example(data: bytes) -> dict[str, bytes | list[int]]:
  """Parses a tf.train.Example of bytes and int64 features. Raises ValueError or IndexError on
  malformed bytes."""
  features: dict[str, bytes | list[int]] = {}
  for number, payload in _fields(memoryview(data)):
    if number != 1:
      raise ValueError(f"unexpected field {number} in an Example")
    for _, entry in _fields(payload):
      parts = dict(_fields(entry))
      key = memoryview(parts[1]).tobytes().decode()
      for kind, content in _fields(parts[2]):
        if kind == 1:
          values = [memoryview(v).tobytes() for _, v in _fields(content)]  # TypeError for a number
          features[key] = values[0] if values else b""
        elif kind == 3:
          features[key] = [i for _, v in _fields(content) for i in _ints(v)]
        else:
          raise ValueError(f"feature {key!r} holds floats; expected bytes or ints")
  return features


def masked(crc: int) -> int:
  """A CRC32-C as TFRecord files hold it."""
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _masked_crc(data: bytes) -> int:
  return masked(google_crc32c.value(data))


def frame_record(payload: bytes) -> bytes:
  """One TFRecord: length, masked CRC32-C of the length, payload, masked CRC32-C of the payload."""
  length = struct.pack("<Q", len(payload))
  return (
    length
    + struct.pack("<I", _masked_crc(length))
    + payload
    + struct.pack("<I", _masked_crc(payload))
  )


def read_records(path: str) -> Iterator[bytes]:
  """Yields the payloads of a TFRecord file. Raises RecordError naming file and record at the first
  damage."""
  for _, payload, problem in scan_records(path):
    if problem:
      raise problem
    yield payload


def file_size(file: IO[bytes]) -> int:
  """Bytes of an open file, which is read on from its start."""
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  return size


def read_length(file: IO[bytes], path: str, number: int) -> int | None:
  """Bytes of the payload that follows in a TFRecord file, or None at the end. Raises
  RecordError."""
  header = file.read(12)
  if not header:
    return None
  if number == 0 and header[:2] == b"\x1f\x8b":
    raise RecordError(f"{path}: is gzip-compressed; shards are uncompressed TFRecords")
  if len(header) < 12 or struct.unpack("<I", header[8:])[0] != _masked_crc(header[:8]):
    raise RecordError(
      f"{path}: record {number}: damaged length (file cut short, or not a TFRecord)"
    )
  return struct.unpack("<Q", header[:8])[0]


def scan_records(path: str) -> Iterator[tuple[int, bytes, RecordError | None]]:
  """Yields (number, payload, what is wrong with it) of every record; the file is lost from a
  damaged length on."""
  with storage.open_binary(path) as file:
    end = file_size(file)
    for number in itertools.count():
      try:
        length = read_length(file, path, number)
      except RecordError as error:
        yield number, b"", error
        return
      if length is None:
        return
      if length + 4 > end - file.tell():  # before memory is asked for
        yield number, b"", RecordError(f"{path}: record {number}: file ends inside the record")
        return
      payload, crc = file.read(length), file.read(4)
      if len(payload) < length or len(crc) < 4:  # cut short meanwhile
        yield number, b"", RecordError(f"{path}: record {number}: file ends inside the record")
        return
      sound = struct.unpack("<I", crc)[0] == _masked_crc(payload)
      yield (
        number,
        payload,
        None if sound else RecordError(CHECKSUM.format(path=path, number=number)),
      )
