"""Ask `bnstat drift` how networks were trained, and compare the answers with the truth.

    python tests/survey/held_out.py FOLDER

Trains 40 sound and 40 broken classifiers with Keras and tf-keras, with a bias before the layers
and without one, and saves them in five forms. Of the sound ones, half were trained in inference
mode with mean 0 and variance 1, half have updated statistics. The broken ones were trained with
the statistics of each batch, and their moving statistics were never updated. A verdict is right,
"cannot tell", or wrong. FOLDER keeps what is done. A network takes some seconds.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import bnstat
from bnstat.checks.training_mode import training_evidence
from tests.survey.predict_mode import Training, fit, network, quiet, samples_of

FORMS = ("keras", "h5", "saved_model", "export", "checkpoint")
TRUTHS = {
    "inference": "stored-statistics",
    "updated": "batch-statistics",
    "broken": "batch-statistics",
}
TASKS = ("digits", "textures", "three-digits")


class Case(NamedTuple):
    """A network, how it was trained, and the form that it is saved in."""

    kind: str
    library: str
    has_bias: bool
    form: str
    seed: int

    @property
    def name(self) -> str:
        bias = "bias" if self.has_bias else "none"
        return f"{self.kind}.{self.library}.{bias}.{self.form}.{self.seed}"


def cases() -> Iterator[Case]:
    """All networks: 40 are broken, 40 are not."""
    for seed, form, has_bias, library in product(
        range(2), FORMS, (True, False), ("keras", "tf_keras")
    ):
        yield Case("broken", library, has_bias, form, seed)
        yield Case(("inference", "updated")[seed], library, has_bias, form, seed)


def verdict_of(case: Case, folder: Path) -> dict[str, Any]:
    """Train and save a network, and return what bnstat says about it."""
    keras: Any = import_module(case.library)
    number = list(cases()).index(case)
    keras.utils.set_random_seed(1000 + number)
    training = Training(
        TASKS[number // 3 % 3],
        "conv-bias" if case.has_bias else "conv",
        ("adam", "momentum", "rmsprop")[number // 2 % 3],
        "stored" if case.kind == "inference" else "batch",
        200,
        case.seed,
    )
    model = network(training, keras, momentum=0.9 if case.kind == "updated" else 1.0)
    fit(training, model, keras)
    scores = keras.layers.Softmax(dtype="float32")(model.output)
    path = _saved(keras.Model(model.input, scores), case.form, folder / case.name)
    stored = bnstat.load(path)
    record: dict[str, Any] = {
        "file": training_evidence(stored).trained_with,
        "rules": sorted({found.rule for found in bnstat.check(stored)}),
    }
    if case.form != "checkpoint":  # It holds no network to run.
        images = samples_of(training.task, 256, 1)[0]
        result = bnstat.drift(path, images)
        assert result.evidence is not None
        data = result.evidence.data
        record["state"] = result.state
        record["data"] = None if data is None else data.trained_with
        record["drift"] = result.evidence.trained_with
    keras.backend.clear_session()
    return record


def _saved(model: Any, form: str, path: Path) -> Path:
    import tensorflow as tf

    if form in ("keras", "h5"):
        path = path.with_name(f"{path.name}.{form}")
        model.save(path)
    elif form == "saved_model":
        tf.saved_model.save(model, str(path))
    elif form == "export":
        model.export(str(path))
    else:
        path.mkdir()
        tf.train.Checkpoint(model=model).save(str(path / "ckpt"))
    return path


def outcome(case: Case, record: dict[str, Any]) -> str:
    """Return how good the verdict on a network is."""
    found = record.get("drift", record["file"])
    if case.kind == "updated" and record.get("state") == "never-updated":
        return "wrong"
    if found == "unknown":
        return "cannot tell"
    return "right" if found == TRUTHS[case.kind] else "wrong"


def main() -> None:
    quiet()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, ...]] = Counter()
    for case in cases():
        file = folder / f"{case.name}.json"
        if not file.exists():
            file.write_text(json.dumps(verdict_of(case, folder)))
        record = json.loads(file.read_text())
        found = outcome(case, record)
        counts[case.kind, "", found] += 1
        counts[case.kind, case.form, found] += 1
        counts[case.kind, "bias" if case.has_bias else "no bias", found] += 1
        print(f"{case.name:40} {found:12} {record}", flush=True)
    for kind, by in sorted({key[:2] for key in counts}):
        row = "".join(
            f"{counts[kind, by, each]:4} {each}" for each in ("right", "cannot tell", "wrong")
        )
        print(f"{kind:12}{by:14}{row}")


if __name__ == "__main__":
    main()
