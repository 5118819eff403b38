"""`bnstat recalibrate` ended at any moment: the original as it was, the copy whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from tests.builders.signals import heeded
from tests.mending.originals import ROOT, contents

DRIVER = """
import json, os, sys
import tensorflow, bnstat.mending.apply, bnstat.mending.recalibrating
import bnstat.mending.estimating.running.runner
from bnstat.cli import main

def hit(module, name, number, sent):
    thing = sys.modules[module]
    *inside, name = name.split(".")
    for part in inside:
        thing = getattr(thing, part)
    real, calls = getattr(thing, name), []
    def wrapper(*arguments, **options):
        result = real(*arguments, **options)
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), sent)
        return result
    setattr(thing, name, wrapper)

model, data, ends = sys.argv[1], sys.argv[2], []
# TensorFlow is imported once; nothing of it runs before the forks.
for moment, sent, copy in json.loads(sys.argv[3]):
    child = os.fork()
    if not child:
        hit(*moment, sent)
        sys.argv = ["bnstat", "recalibrate", model, "--data", data, "--exact", "-o", copy]
        try:
            main()
        finally:
            sys.stdout.flush()
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""
NAMED = ("os", "rename", 1)
RUN = ("bnstat.mending.estimating.running.runner", "Runner.run")
ENDINGS = [
    (("bnstat.mending.recalibrating", "scene", 1), signal.SIGTERM),
    ((*RUN, 1), signal.SIGINT),
    ((*RUN, 3), signal.SIGKILL),
    (("bnstat.mending.draft", "copy_file", 1), signal.SIGINT),
    (("bnstat.mending.draft", "copy_file", 2), signal.SIGKILL),
    (("bnstat.mending.apply", "write", 1), signal.SIGTERM),
    (("bnstat.mending.apply", "verify", 1), signal.SIGINT),
    (NAMED, signal.SIGTERM),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    module = tf.Module()
    module.moving_mean = tf.Variable(tf.zeros(3), name="bn/moving_mean")
    module.moving_variance = tf.Variable(tf.ones(3), name="bn/moving_variance")

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])
    def call(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.batch_normalization(
            x, module.moving_mean, module.moving_variance, None, None, 1e-3
        )

    module.call = call
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=call)
    return tmp_path / "model"


def test_at_any_moment(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(3, 2, (150, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    before = contents(model)
    tries = [
        (moment, sent, str(tmp_path / str(number) / "copy"))
        for number, (moment, sent) in enumerate(ENDINGS)
    ]
    for _, _, copy in tries:
        Path(copy).parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, model, tmp_path / "x.npy", json.dumps(tries)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=heeded,
    )
    ends = json.loads(done.stdout.splitlines()[-1])
    for (moment, sent, copy), end in zip(tries, ends, strict=True):
        where = f"{moment} {sent}: {end}\n{done.stderr}"
        assert end != 0, where
        left = os.listdir(Path(copy).parent)
        if moment == NAMED:
            assert "copy" in left, where
            (layer,) = bnstat.load(copy)
            np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=1e-5)
        elif sent == signal.SIGKILL:
            assert all(name.startswith(".bnstat-") for name in left), where
        else:
            assert left == [], where
    assert contents(model) == before
