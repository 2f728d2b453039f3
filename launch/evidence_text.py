"""A stand-in for DistilBERT where none is at hand: its architecture in small, drawn at random.

  python -m launch.evidence_text --pairs=runs/evidence/sets/pairs/pairs.csv --output=runs/text

It knows the words of the pairs' sentences and no other. Sentences with other words become other
vectors, of which adapters learn what they ask for. It knows no synonyms, no word order to speak of,
and nothing of sentences that it was not made for: what it shows is what the sound's vectors allow
when the sentences are told apart. Needs pip install -e .[text].
"""

import csv
import os
import pathlib
import re
import sys

from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {"dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256}


def words(sentences: list[str]) -> list[str]:
  """What DistilBERT's tokenizer splits sentences into before it looks words up: lower case, with
  punctuation apart. Each once, sorted."""
  return sorted(
    {word for text in sentences for word in re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())}
  )


def write(sentences: list[str], output: pathlib.Path) -> None:
  """A folder that `save_pretrained` would write. Raises UserError if a library is missing."""
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"a text model needs {error.name}: pip install -e .[text]") from error
  vocabulary = [*SPECIAL, *words(sentences)]
  temporary = output.with_name(f"{output.name}.part")
  temporary.mkdir(parents=True, exist_ok=True)
  listing = temporary / "words.txt"
  listing.write_text("\n".join(vocabulary), encoding="utf-8")
  torch.manual_seed(0)
  config = transformers.DistilBertConfig(vocab_size=len(vocabulary), **SIZES)
  transformers.DistilBertModel(config).save_pretrained(temporary)
  transformers.DistilBertTokenizerFast(str(listing)).save_pretrained(temporary)
  os.replace(temporary, output)


def main(argv: list[str]) -> int:
  """Returns 0. Raises UserError."""
  parser = Parser("launch.evidence_text", __doc__)
  parser.add_argument("--pairs", required=True, type=pathlib.Path, help="pairs.csv of a set")
  parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to make")
  flags = parser.parse(argv)
  with flags.pairs.open(encoding="utf-8", newline="") as file:
    write([row["text"] for row in csv.DictReader(file)], flags.output)
  return 0


if __name__ == "__main__":
  sys.exit(guard(lambda: main(sys.argv[1:])))
