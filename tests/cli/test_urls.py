from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.server import serving

DATA = Path(__file__).parents[1] / "data/digits"


@pytest.fixture(scope="module")
def url():
    pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
    with serving(DATA) as server:
        yield server.url


@pytest.mark.parametrize("command", ["inspect", "export --json", "check", "inspect --no-values"])
def test_a_url_gives_the_same_output_as_a_path(run, url, command):
    name, *rest = command.split()
    remote = run(name, f"{url}/run/model-400", *rest)
    local = run(name, str(DATA / "run/model-400"), *rest)
    assert remote.exit_code == local.exit_code
    assert remote.stdout.replace(url, str(DATA)).split() == local.stdout.split()


REFUSED = {
    "--max-download=1kB": "allow more with --max-download",
    "--storage-option=no_such=secret": "does not accept these storage options",
}


@pytest.mark.parametrize(("option", "line"), REFUSED.items())
def test_refusals_are_one_line(run, url, option, line):
    result = run("inspect", f"{url}/run/model-400", option)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_storage_options_are_json_or_text(run, monkeypatch):
    from bnstat.storage import stores

    given = []

    def connect(url, access):
        given.append((access.options, access.left))
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "connect", connect)
    options = ["anon=true", "key=abc", "port=80", "client_kwargs={'a': 1}", 'more={"a": 1}']
    run("inspect", "s3://x/y", *[f"--storage-option={option}" for option in options])
    run("inspect", "s3://x/y", "--max-download", "1.5MiB")
    texts = {"key": "abc", "client_kwargs": "{'a': 1}"}
    parsed = {"anon": True, "port": 80, "more": {"a": 1}, **texts}
    assert given == [(parsed, 256_000_000), ({}, 1_572_864)]


@pytest.mark.parametrize("command", ["apply {0} x.npz -o copy", "drift {0} --data x.npz"])
def test_apply_and_drift_refuse_urls(run, command):
    result = run(*command.format("s3://models/m").split())
    assert result.exit_code == 2
    assert "is a URL, and" in result.stderr


@pytest.mark.parametrize(
    "command",
    ["inspect", "export --json", "check", "check --sarif", "history", "history --json", "diff {0}"],
)
def test_no_secret_is_shown(run, url, command):
    secret = url.replace("://", "://me:hush@") + "/run/?sig=hush"
    name, *rest = command.format(secret).split()
    result = run(name, secret, *rest)
    assert result.exit_code in (0, 1)
    assert "hush" not in result.stdout + result.stderr
