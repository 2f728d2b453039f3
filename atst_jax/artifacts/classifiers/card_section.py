"""What a model card says of a classifier's head."""

from collections.abc import Collection

from atst_jax.artifacts.classifiers.thresholds import described
from atst_jax.audio.frontend import FrontEnd

# what was chosen, in `about`
CHOSEN = (
  *("seed", "fold", "epoch", "number", "protocol", "features", "penalty", "learning_rate"),
  "fitted",
)
CLASSIFIER = """
## Classifier

```python
from atst_jax.predict import labels_of, load_model, predict
model = load_model("{name}")
probabilities = predict([waveform], model, sample_rate=44100)  # (1, {count}), of labels_of(model)
```

- {count} labels, {each}: {labels}. `config.json` holds all under `head`{each_threshold}.
- {origin}
- Of these {given}.
- Scores of the evaluation: {scores}.
- Of a sound longer than {seconds} the {part} {seconds} count; `--window` of \
`python -m atst_jax.predict` hears all.
"""


PROGRAMS = {"jax": "encoder.jax", "onnx": "encoder.onnx", "onnx_int8": "encoder_int8.onnx"}
# what the programs of a log-mel leave to their caller
LEFT = """- {files} give what the head says of the log-mel as it comes. Cut it first to its {part} \
{frames} frames{fill}, and round it to float16, as `predict` does: other frames give other \
probabilities.{chunks}
"""
CHUNKS = """ Longer than a chunk of {chunk_frames} frames: the mean of the chunks' logits counts \
(`tail` in `config.json`), and `activation` makes probabilities of it."""


def card_section(name: str, config: dict, frontend: FrontEnd, artifacts: Collection[str]) -> str:
  """The Markdown of an export's section `head`; nothing for an encoder alone.

  Args:
    name: of the model.
    config: the export's config.json.
    frontend: of the export.
    artifacts: what lies in the folder.
  """
  head = config["head"]
  if head is None:
    return ""
  about, labels = head["about"], head["labels"]
  settings = ", ".join(f"{key} {about[key]}" for key in CHOSEN if key in about)
  scores = about.get("scores", {})
  seconds = frontend.samples_of(head["max_frames"]) / frontend.sample_rate
  known = [key for key in ("valid", "test") if scores.get(key) is not None]
  parts = [f"{scores['metric']} {100 * scores[key]:.1f} % on the {key} clips" for key in known]
  by = described(head)
  part = "central" if head["crop"] == "center" else "first"
  return CLASSIFIER.format(
    name=name,
    count=len(labels),
    each="several for a sound" if head["multi_label"] else "one for each sound",
    labels=", ".join(f"`{label}`" for label in labels[:10]) + (", …" if len(labels) > 10 else ""),
    each_threshold=", each with its threshold" if head["multi_label"] else "",
    origin=f"From {about.get('source', 'an unknown source')}: {settings or 'nothing more known'}"
    f"{', chosen on the TEST CLIPS' if about.get('selected_on_test') else ''}.",
    given=f"those that reach their threshold are given: {by}" if head["multi_label"] else by,
    scores="; ".join(parts) or "none were known",
    seconds=f"{seconds:.3g} s",
    part=part,
  ) + _left(config, part, artifacts)


def _left(config: dict, part: str, artifacts: Collection[str]) -> str:
  """What the programs of a classifier leave to their caller, if there are any."""
  head, files = config["head"], [file for key, file in PROGRAMS.items() if key in artifacts]
  if not files:
    return ""
  fill, chunk = head["fill_frames"], config["chunk_frames"]
  return LEFT.format(
    files=" and ".join(f"`{file}`" for file in files),
    part=part,
    frames=head["max_frames"],
    fill="" if fill is None else f", fill shorter ones to {fill} with {head['fill_db']:.4g} dB",
    chunks=CHUNKS.format(chunk_frames=chunk) if head["max_frames"] > chunk else "",
  )
