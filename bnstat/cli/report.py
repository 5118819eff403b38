"""`bnstat report`: write an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnstat.cli import options
from bnstat.cli.options import Reading, say

if TYPE_CHECKING:
    from bnstat.loading import Models
    from bnstat.model import Model
    from bnstat.output.page import Page

_EPILOG = """\b
Examples:
  bnstat report saved_model -o report.html
  bnstat report before.h5 after.h5 -o diff.html
  bnstat report runs/cnn -o run.html              all checkpoints of a folder
  bnstat report runs/cnn --step 1200 -o one.html
  bnstat report m.keras --drift drift.json -o report.html
"""


@click.command("report", epilog=_EPILOG)
@click.argument("paths", nargs=-1, type=click.Path(), metavar="[PATH] [OTHER]...")
@options.file_option(
    "--drift",
    help="Also show the statistics of data, from the output of bnstat drift --json.",
)
@click.option(
    "--epsilon",
    type=float,
    metavar="E",
    help="With two models, use this epsilon for layers whose file does not store it.",
)
@options.output
@options.layers
@options.reading
@options.quiet
def command(
    paths: tuple[str, ...], drift: str | None, epsilon: float | None, output: str, reading: Reading
) -> int:
    """Write an HTML page about a model, a training run, or the difference of two models.

    The page is one HTML file that needs no network and no server. It shows the findings and what
    they mean, a table of the layers, and the statistics of each layer channel by channel.

    PATH is the folder, the prefix, any file or the URL of a SavedModel, a checkpoint, an .h5, a
    .keras or another model. For a folder with several checkpoints, or for three or more paths in
    chronological order, the page shows how the statistics moved. For two paths it shows the
    differences.
    """
    options.refuse_terminal(output, "HTML")
    if drift is not None and len(paths) > 1:
        raise click.UsageError("--drift requires a single PATH")
    if epsilon is not None and len(paths) != 2:
        raise click.UsageError("--epsilon requires two PATHs")
    content, code = _page(paths or (".",), reading, drift, epsilon)

    from bnstat.output import page
    from bnstat.output.sink import open_text

    with open_text(output) as file:
        page.write(content, file)
    return code


def _page(
    paths: tuple[str, ...], reading: Reading, drift: str | None, epsilon: float | None
) -> tuple[Page, int]:
    from bnstat.checks import check
    from bnstat.output import page

    is_one_model = drift is not None or reading.checkpoint is not None or reading.step is not None
    if len(paths) == 1 and not is_one_model:
        run = reading.load_all(paths[0])
        if len(run) > 1:
            return _run_page(paths[0], run, reading)
    *earlier, newest = models = reading.load(*paths)
    if len(models) > 2:
        for model in earlier:
            reading.exit_code(model)
        entries = list(zip(paths, models, strict=True))
        return _run_page(f"{paths[0]} to {paths[-1]}", entries, reading)
    findings = check(newest)
    if not earlier:
        measured = None if drift is None else page.load_measured(drift)
        return page.of_model(newest, findings, measured), reading.exit_code(newest)

    from bnstat.compare.diff import diff

    difference = diff(*models, epsilon=epsilon)
    content = page.of_difference(difference, earlier[0], newest, findings)
    has_batch_norm = difference.layers or difference.folded
    return content, 0 if has_batch_norm else max(map(reading.exit_code, models))


def _run_page(
    path: str, entries: Models | list[tuple[str, Model]], reading: Reading
) -> tuple[Page, int]:
    from bnstat.checks import check
    from bnstat.output import page
    from bnstat.output.terminal.screen import track
    from bnstat.run_history import history

    frames = page.Frames(entries, len(entries))
    run = history(track(frames, "reading", hidden=reading.quiet))
    if not run.checkpoints:
        raise run.skipped[0].error
    for skipped in run.skipped:
        say(f"skipped: {skipped.error}")
    findings = [*check(run), *check(frames.newest)]
    return page.of_history(path, run, frames, findings), reading.exit_code(frames.newest)
