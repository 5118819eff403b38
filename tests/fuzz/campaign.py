"""A run of the fuzzer: cases one after the other; findings are saved."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random

from tests.fuzz.recipes import make
from tests.fuzz.seeds import Seed
from tests.fuzz.worker import Verdict, Worker


class Campaign:
    """Makes and judges cases. The seed of the random numbers is `number`.

    Attributes:
        cases: format -> files judged.
        verdicts: format and kind of verdict -> count.
        findings: text of a finding -> the folder with the files.
    """

    def __init__(self, seeds: Sequence[Seed], saved: Path, number: int = 0) -> None:
        self._seeds = seeds
        self._saved = saved
        self._number = number
        self._worker = Worker()
        self._answers: dict[str, str] = {}
        self._scratch = Path(tempfile.mkdtemp(prefix="bnstat-fuzz-"))
        self.cases: Counter[str] = Counter()
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.findings: dict[str, Path] = {}

    def close(self) -> None:
        self._worker.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, seconds: float = math.inf, rounds: float = math.inf) -> None:
        """Judge the seeds, then a case of each format per round until a limit is reached."""
        end = time.monotonic() + seconds
        formats = sorted({seed.format for seed in self._seeds})
        for seed in self._seeds:
            self._take(seed, seed, f"{seed.format}-seed")
        index = 0
        while index < rounds * len(formats) and time.monotonic() < end:
            format_ = formats[index % len(formats)]
            self.case(format_, index // len(formats))
            index += 1

    def lines(self) -> Iterator[str]:
        for name, count in sorted(self.cases.items()):
            answers, errors = self.verdicts[name, "answer"], self.verdicts[name, "error"]
            yield f"{name:14} {count:8} files: {answers} answers, {errors} errors"
        yield f"{'all':14} {sum(self.cases.values()):8} files, {len(self.findings)} findings"
        for text, folder in self.findings.items():
            yield f"  {text}\n    {folder}"

    def case(self, format_: str, index: int) -> Verdict:
        rng = Random(f"{self._number} {format_} {index}")
        seed = rng.choice([seed for seed in self._seeds if seed.format == format_])
        case, is_covered = make(rng, seed)
        return self._take(case, seed, f"{format_}-{self._number}-{index}", is_covered)

    def _take(self, case: Seed, seed: Seed, name: str, is_covered: bool = False) -> Verdict:
        expected = self._answer_of(seed) if is_covered else None
        verdict = self._judge(case, expected)
        if verdict.text.startswith("takes"):  # the machine may have stalled: try once more
            verdict = self._judge(case, expected)
        self.cases[case.format] += 1
        self.verdicts[case.format, verdict.text.partition(":")[0]] += 1
        if verdict.is_finding and verdict.text not in self.findings:
            self.findings[verdict.text] = self._saved / name
            self._save(case, seed, verdict, name)
        return verdict

    def _answer_of(self, seed: Seed) -> str:
        if seed.name not in self._answers:
            self._answers[seed.name] = self._judge(seed, None).text
        return self._answers[seed.name]

    def _judge(self, case: Seed, expected: str | None) -> Verdict:
        folder = self._scratch / "case"
        try:
            verdict = self._worker.judge(case.write(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        unchanged = verdict.text in (expected, None) or not verdict.text.startswith("answer")
        if expected is None or expected.startswith("error") or unchanged:
            return verdict
        return Verdict("damage that checksums cover gives another answer", True)

    def _save(self, case: Seed, seed: Seed, verdict: Verdict, name: str) -> None:
        folder = self._saved / name
        shutil.rmtree(folder, ignore_errors=True)
        case.write(folder / "files")
        record = {"finding": verdict.text, "seed": seed.name, "target": case.target}
        (folder / "finding.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / "details.txt").write_text(verdict.details)


def replay(folder: Path) -> Verdict:
    record = json.loads((folder / "finding.json").read_text())
    with closing(Worker()) as worker:
        return worker.judge(folder / "files" / record["target"])
