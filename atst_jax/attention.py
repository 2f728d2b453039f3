"""The attention of a transformer's CLS token over the time of a clip.

  python -m atst_jax.attention --encoder=encoders/base --input=dog.wav --output=attention.png
  python -m atst_jax.attention --encoder=encoders/base --data=data/esc10 --clip=ID \
    --output=attention.png

The weights are those of the forward pass: softmax(q_CLS kᵀ / √d) over the clip's valid tokens, of
every head of every block. Clips longer than a chunk are shown chunk by chunk, as they are embedded:
each chunk has a CLS of its own.
"""

import numpy as np

from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Dataset
from atst_jax.figures.attention import attention_figure
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError


def _find(dataset: Dataset, id: str) -> np.ndarray:
  for split in dataset.splits:
    for clip in dataset.clips(split):
      if clip.id == id:
        return clip.mel.astype(np.float32)
  raise UserError(f"--clip={id}: no clip of {dataset.root} has this id")


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.attention", __doc__)
  parser.add_argument("--encoder", required=True, help="exported encoder")
  parser.add_argument("--input", help="an audio file")
  parser.add_argument("--data", help="or a prepared data set,")
  parser.add_argument("--clip", help="and the id of one of its clips")
  parser.add_argument("--output", required=True, help="PNG to write")
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  if (flags.input is None) == (flags.data is None) or (flags.data is None) != (flags.clip is None):
    raise UserError("give --input, or --data with --clip")
  model = load_model(flags.encoder)
  if flags.input:
    from atst_jax.audio.decode import load_audio

    mel = model.log_mel(load_audio(flags.input, model.sample_rate), model.sample_rate)
  else:
    dataset = Dataset.load(flags.data)
    dataset.check_frontend(model.frontend, flags.encoder)
    mel = _find(dataset, flags.clip)
  attention_figure(model, mel, flags.output, title=flags.clip or flags.input)
  print(flags.output)


if __name__ == "__main__":
  leave(main())
