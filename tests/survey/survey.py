"""Check every model file of many repositories and print how many findings each rule has.

    python tests/survey/survey.py FOLDER -o result.json

FOLDER contains one folder per unpacked repository, in which `bnstat scan` finds the models. Each
model is checked in a process of its own, so a crash or a hang is recorded as one. The JSON holds
one record per model: layers, findings, errors, and a digest of the batch-norm values that
identifies copies of one model. Repositories that it has already are not checked again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import bnstat

SEVERITIES = ("error", "warning", "info")

Record = dict[str, Any]


def models_in(repository: Path, timeout: float) -> list[str]:
    """Return the paths of the models in a repository, as `bnstat scan` finds them."""
    scan = ["-m", "bnstat", "scan", str(repository), "--json", "-q", "--isolated"]
    records = map(json.loads, _run(scan, timeout).stdout.splitlines())
    return list(dict.fromkeys(record["path"] for record in records))


def _run(arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    return subprocess.run([sys.executable, *arguments], timeout=timeout, **options)


def examine(path: str) -> Iterator[Record]:
    """Yield one record for each model at a path, or one for the error that prevented reading."""
    models: Iterable[tuple[str | None, bnstat.Model | bnstat.BnstatError]]
    try:
        models = bnstat.load_all(path)
    except bnstat.BnstatError as error:
        models = [(None, error)]
    names = ("rule", "severity", "layer", "message")
    for name, model in models:
        record: Record = {"checkpoint": name}
        try:
            if isinstance(model, bnstat.BnstatError):
                raise model
            record |= {"checkpoint": model.source.checkpoint, "format": model.source.format}
            record |= {"layers": len(model.layers), "findings": [], "digest": ""}
            listed = [{key: getattr(each, key) for key in names} for each in bnstat.check(model)]
            yield {**record, "findings": listed, "digest": _digest(model)}
        except bnstat.BnstatError as error:
            yield {**record, "error": type(error).__name__, "message": str(error)}


def _digest(model: bnstat.Model) -> str:
    """Return a hash of all batch-norm values of a model, whatever its format and names."""
    digest = blake2b(digest_size=8)
    for layer in model.layers:
        for role in ("gamma", "beta", "moving_mean", "moving_variance"):
            array = layer.array(role)
            digest.update(role.encode() if array is None else array.tobytes())
    return digest.hexdigest()


def survey(path: str, timeout: float) -> list[Record]:
    """Return the records of the models at a path; a crash or a timeout is recorded as a bug."""
    try:
        ended = _run([__file__, "--work", path], timeout)
    except subprocess.TimeoutExpired:
        return [{"bug": f"no end after {timeout:g} s"}]
    records: list[Record] = [json.loads(line) for line in ended.stdout.splitlines()]
    if ended.returncode or ended.stderr:
        records.append({"bug": f"exit code {ended.returncode}\n{ended.stderr[-2000:]}"})
    return records


def worst(record: Record) -> str | None:
    """Return the gravest severity among the findings of a record."""
    found = {finding["severity"] for finding in record.get("findings", ())}
    return next((severity for severity in SEVERITIES if severity in found), None)


def table(records: Sequence[Record]) -> str:
    """Return the tables of a survey as text: totals, findings by rule, flagged repositories."""
    models = [record for record in records if record.get("layers") or record.get("findings")]
    normed = [record for record in models if record.get("layers")]
    owners = {record["repository"] for record in normed}
    lines = [
        f"repositories: {len({record['repository'] for record in records})},"
        f" with batch norm: {len(owners)}",
        f"models with batch norm: {len(normed)},"
        f" distinct: {len({record['digest'] for record in normed})},"
        f" layers: {sum(record['layers'] for record in normed)}",
        f"formats: {_counted(record['format'] for record in normed)}",
        f"not read: {_counted(record['error'] for record in records if 'error' in record)}",
        f"bugs: {sum('bug' in record for record in records)}",
        "",
        "rule   severity  findings  models  repositories",
    ]
    by_rule: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in models:
        for finding in record["findings"]:
            by_rule[finding["rule"], finding["severity"]].append(record)
    for (rule, severity), found in sorted(by_rule.items()):
        paths = {(record["repository"], record["path"]) for record in found}
        places = {record["repository"] for record in found}
        lines.append(f"{rule}  {severity:8}  {len(found):8}  {len(paths):6}  {len(places):12}")
    for severity in ("error", "warning"):
        flagged = [record for record in models if worst(record) == severity]
        places = {record["repository"] for record in flagged}
        lines += ["", f"{severity}s: {len(flagged)} models in {len(places)} repositories"]
        for place in sorted(places):
            here = [record for record in flagged if record["repository"] == place]
            rules = (
                sorted({f["rule"] for f in record["findings"] if f["severity"] == severity})
                for record in here
            )
            counted, example = _counted(chain.from_iterable(rules)), here[0]["path"]
            lines.append(f"  {place}: {len(here)} models, {counted}, such as {example}")
    return "\n".join(lines)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in Counter(names).most_common()) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the models of many repositories.")
    parser.add_argument("folder", type=Path, help="folder of unpacked repositories")
    parser.add_argument("-o", "--output", type=Path, help="keep all records in this JSON file")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per model")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        for record in examine(str(given.folder)):
            print(json.dumps(record))
        return
    records = []
    if given.output and given.output.exists():
        records = json.loads(given.output.read_text())
    done = {record["repository"] for record in records}
    for repository in sorted(path for path in given.folder.iterdir() if path.is_dir()):
        if repository.name in done:
            continue
        for path in models_in(repository, given.timeout):
            place = {"repository": repository.name, "path": os.path.relpath(path, repository)}
            records += [{**place, **found} for found in survey(path, given.timeout)]
        print(f"{repository.name}", file=sys.stderr)
        if given.output:
            given.output.write_text(json.dumps(records, indent=1))
    print(table(records))


if __name__ == "__main__":
    main()
