"""Sentences to vectors by a frozen text encoder of the `transformers` library (DistilBERT in the
papers)."""

import hashlib
import json
import os
from typing import Any, NamedTuple

import numpy as np

from atst_jax.downstream import features
from atst_jax.util.errors import UserError

POOLINGS = ("first", "mean")
POOLER = "pooler."  # a head for classification, which is not used here
BATCH = 64  # sentences encoded at a time


class TextEncoder(NamedTuple):
  """A tokenizer and a network (PyTorch, float32, in evaluation mode), and 16 hexadecimal digits
  over its parameters and the tokenizer's vocabulary."""

  tokenizer: Any
  network: Any
  hash: str


def load_text_encoder(name: str) -> TextEncoder:
  """Opens a folder that `save_pretrained` wrote, or a model of the hub by its name.

  Raises:
    UserError: torch or transformers is not installed, or there is no such model.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"embedding text needs {error.name}: pip install -e .[text]") from error
  is_folder = os.path.isdir(name)
  if not is_folder and (os.path.isabs(name) or name.count("/") > 1 or name.startswith((".", "~"))):
    raise UserError(
      f"--config.text.model={name} is not a folder; name one that holds config.json, the weights "
      "and the tokenizer, or a model of the hub such as distilbert-base-uncased"
    )
  transformers.logging.set_verbosity_error()  # no warnings about unused heads of a checkpoint
  transformers.logging.disable_progress_bar()
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=is_folder)
    network, told = transformers.AutoModel.from_pretrained(
      name, local_files_only=is_folder, output_loading_info=True
    )
  except (OSError, ValueError, KeyError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"--config.text.model={name} cannot be opened ({reason}); name a folder with config.json, "
      "the weights and the "
      "tokenizer, or a model of the hub on a machine that reaches it"
    ) from error
  network = network.to(torch.float32).eval()
  # drawn at random in its place
  missing = sorted(key for key in told["missing_keys"] if not key.startswith(POOLER))
  if missing:
    raise UserError(
      f"--config.text.model={name} lacks {len(missing)} of the encoder's arrays, the first is "
      f"{missing[0]}; name a model that was saved whole"
    )
  digest = hashlib.sha256()
  for key, value in sorted(network.state_dict().items()):
    if key.startswith(POOLER):
      continue
    digest.update(f"{key} {tuple(value.shape)}".encode())
    digest.update(np.ascontiguousarray(value.numpy()).tobytes())
  digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
  return TextEncoder(tokenizer, network, digest.hexdigest()[:16])


def embed_texts(texts: list[str], encoder: TextEncoder, *, pooling: str, folder: str) -> np.ndarray:
  """(U, E) float32 vectors of the last layer, computed once and kept in a folder.

  Args:
    texts: U sentences.
    pooling: "first": that of the first token; "mean": of all tokens of the sentence, the special
      ones too.
    folder: of the files; their names depend on the parameters, the tokens and the pooling.

  Raises:
    UserError: an unknown pooling, or a vector that is NaN or infinite, with its sentence.
  """
  if pooling not in POOLINGS:
    raise UserError(f"--config.text.pooling={pooling}: choose one of {', '.join(POOLINGS)}")
  tokens = encoder.tokenizer(texts, truncation=True)
  digest = hashlib.sha256(repr(tokens["input_ids"]).encode()).hexdigest()
  key = {"text": encoder.hash, "tokens": digest, "pooling": pooling}
  return features.cached(folder, key, "text", texts, lambda: _embed(texts, encoder, pooling))


def _embed(texts: list[str], encoder: TextEncoder, pooling: str) -> np.ndarray:
  import torch

  out = []
  with torch.inference_mode():
    for start in range(0, len(texts), BATCH):
      tokens = encoder.tokenizer(
        texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt"
      )
      states = encoder.network(**tokens).last_hidden_state  # (B, N, E)
      if pooling == "first":
        out.append(states[:, 0].numpy())
      else:
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        out.append(((states * mask).sum(1) / mask.sum(1)).numpy())
  vectors = np.concatenate(out)
  bad = np.flatnonzero(~np.isfinite(vectors).all(-1))
  if len(bad):
    raise UserError(
      f"the text model gives NaN or infinity for {len(bad)} of {len(texts)} sentences, the first "
      f"is {texts[bad[0]]!r}; choose another --config.text.model"
    )
  return vectors
