"""Sound that libsndfile does not read (AAC, WMA, films with a sound track), decoded by PyAV.

Samples that an encoder adds before and after the sound are cut, as far as the container tells:
exactly in MP4, similar containers and Opus. Raw AAC (.aac, .ts) does not tell, and its 1,024 first
samples stay. Only the containers below are opened: a playlist would make FFmpeg open other files
and addresses.
"""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np

OPTIONS = {
  "format_whitelist": "aac,ac3,aiff,amr,ape,asf,avi,caf,dsf,dts,dtshd,eac3,flac,flv,matroska,mov,"
  "mp3,mpc,mpc8,mpeg,mpegts,ogg,oma,rm,shn,tak,tta,w64,wav,wv",
  "protocol_whitelist": "none",
}


class PyAvFile:
  """A sound with the part of `soundfile.SoundFile` that decoding needs.

  `frames` is the container's number, which may be wrong, or -1.
  """

  def __init__(self, container):
    self._stream = container.streams.best("audio")
    if self._stream is None:
      raise ValueError("no sound track")
    if self._stream.codec_context is None:
      raise ValueError("a sound track of an unknown codec")
    self._blocks = self._decoded(container)
    self._rest = np.zeros((0, 1), np.float32)
    self.samplerate = self._stream.rate or 0
    self.channels = self._stream.channels or 1
    seconds = None
    if self._stream.duration is not None:
      seconds = float(self._stream.duration * self._stream.time_base)
    elif container.duration is not None:
      seconds = container.duration / 1e6
    self.frames = -1 if seconds is None else round(seconds * self.samplerate)

  def _decoded(self, container) -> Iterator[np.ndarray]:
    """Yields (n, C) float32."""
    import av

    planes = av.AudioResampler(format="fltp")
    frames = itertools.chain(container.decode(self._stream), [None])
    for frame, following in itertools.pairwise(frames):
      samples = frame.samples
      if following is None and frame.time_base * frame.sample_rate == 1 and frame.duration:
        samples = min(samples, frame.duration)  # the encoder has filled up the last one
      for block in planes.resample(frame):
        yield block.to_ndarray().T[:samples]

  def read(self, size: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
    """(n, C) float32; n is `size`, or less at the end."""
    parts, held = [self._rest], len(self._rest)
    while held < size and (block := next(self._blocks, None)) is not None:
      parts.append(block)
      held += len(block)
    found = np.concatenate([part for part in parts if len(part)] or parts[:1])
    self._rest = found[size:]
    return found[:size]


@contextlib.contextmanager
def open_pyav(file) -> Iterator[PyAvFile]:
  """A sound in a file that is open for reading bytes.

  Raises ValueError with FFmpeg's reason if it cannot read the file, also later while it is open.
  """
  import av

  try:
    with av.open(file, container_options=OPTIONS) as container:
      yield PyAvFile(container)
  except av.error.FFmpegError as error:
    raise ValueError(error.strerror or str(error)) from error
