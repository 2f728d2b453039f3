"""What a model card says of a classifier's head."""

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

- {count} labels, {each}: {labels}. `config.json` holds all under `head`, each with its threshold.
- {origin}
- Thresholds: {rule} on {clips} validation clips{chosen}.
- Scores of the evaluation: {scores}.
- Of a sound longer than {seconds} the {part} {seconds} count; `--window` of \
`python -m atst_jax.predict` hears all.
"""


def card_section(name: str, head: dict | None, frontend: FrontEnd) -> str:
  """The Markdown of an export's section `head`; nothing for an encoder alone."""
  if head is None:
    return ""
  about, labels = head["about"], head["labels"]
  settings = ", ".join(f"{key} {about[key]}" for key in CHOSEN if key in about)
  scores = about.get("scores", {})
  seconds = (head["max_frames"] - 1) * frontend.hop_length / frontend.sample_rate
  known = [key for key in ("valid", "test") if scores.get(key) is not None]
  parts = [f"{scores['metric']} {100 * scores[key]:.1f} % on the {key} clips" for key in known]
  thresholds = about.get("thresholds", {"rule": "not chosen", "clips": 0})
  return CLASSIFIER.format(
    name=name,
    count=len(labels),
    each="several for a sound" if head["multi_label"] else "one for each sound",
    labels=", ".join(f"`{label}`" for label in labels[:10]) + (", …" if len(labels) > 10 else ""),
    origin=f"From {about.get('source', 'an unknown source')}: {settings or 'nothing more known'}.",
    rule=thresholds["rule"],
    clips=thresholds["clips"],
    chosen=", which are the TEST CLIPS" if about.get("selected_on_test") else "",
    scores="; ".join(parts) or "none were known",
    seconds=f"{seconds:.3g} s",
    part="central" if head["crop"] == "center" else "first",
  )
