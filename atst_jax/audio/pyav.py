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

from .channels import mean_of

OPTIONS = {
  "format_whitelist": "aac,ac3,aiff,amr,ape,asf,avi,caf,dsf,dts,dtshd,eac3,flac,flv,matroska,mov,"
  "mp3,mpc,mpc8,mpeg,mpegts,ogg,oma,rm,shn,tak,tta,w64,wav,wv",
  "protocol_whitelist": "none",
}


class PyAvFile:
  """A sound with the part of `soundfile.SoundFile` that decoding needs.

  It has the rate and the channels of its first frame: what follows at another rate is resampled,
  and of other channels the mean is taken.

  Attributes:
    frames: the container's number, which may be wrong, or -1.
    error: FFmpeg's reason why it reads no more of a file that is `partly` read, "" if it does.
  """

  def __init__(self, container, partly: bool):
    """`partly` passes over damage, and takes any other error for the end."""
    self._stream = container.streams.best("audio")
    if self._stream is None:
      raise ValueError("no sound track")
    if self._stream.codec_context is None:
      raise ValueError("a sound track of an unknown codec")
    self.error = ""
    frames = self._frames(container, partly)
    first = next(frames, None)
    if first is None and self.error:
      raise ValueError(self.error)
    self.samplerate = first.sample_rate if first else self._stream.rate or 0
    self.channels = first.layout.nb_channels if first else self._stream.channels or 1
    self._blocks = self._decoded(itertools.chain([first] if first else [], frames))
    self._rest = np.zeros((0, 1), np.float32)
    seconds = None
    if self._stream.duration is not None:
      seconds = float(self._stream.duration * self._stream.time_base)
    elif container.duration is not None:
      seconds = container.duration / 1e6
    self.frames = -1 if seconds is None else round(seconds * self.samplerate)

  def _frames(self, container, partly: bool) -> Iterator:
    """Yields FFmpeg's frames."""
    import av

    try:
      for packet in container.demux(self._stream):
        try:
          yield from packet.decode()
        except av.error.InvalidDataError:
          if not partly:
            raise
    except av.error.FFmpegError as error:
      if not partly:
        raise
      self.error = error.strerror or str(error)

  def _decoded(self, frames: Iterator) -> Iterator[np.ndarray]:
    """Yields (n, C) float32."""
    import av

    kind = lambda pair: (pair[0].format.name, pair[0].layout.name, pair[0].sample_rate)
    pairs = itertools.pairwise(itertools.chain(frames, [None]))
    for (*_, rate), alike in itertools.groupby(pairs, kind):
      planes = av.AudioResampler(format="fltp", rate=self.samplerate)
      for frame, following in alike:
        samples = None
        if following is None and frame.time_base * self.samplerate == 1 and frame.duration:
          samples = frame.duration  # the encoder has filled up the last one
        for block in planes.resample(frame):
          yield self._like_first(block.to_ndarray().T[:samples])
      for block in planes.resample(None) if rate != self.samplerate else []:
        yield self._like_first(block.to_ndarray().T)

  def _like_first(self, block: np.ndarray) -> np.ndarray:
    """(n, c) -> (n, C)."""
    if block.shape[1] == self.channels:
      return block
    return np.repeat(mean_of(block)[:, None], self.channels, axis=1)

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
def open_pyav(file, partly: bool = False) -> Iterator[PyAvFile]:
  """A sound in a file that is open for reading bytes, as `PyAvFile` says.

  Raises ValueError with FFmpeg's reason if it cannot read the file, also later while it is open.
  """
  import av

  try:
    with av.open(file, container_options=OPTIONS) as container:
      yield PyAvFile(container, partly)
  except av.error.FFmpegError as error:
    raise ValueError(error.strerror or str(error)) from error
