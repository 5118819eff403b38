"""Commands that a signal ends while a call into TensorFlow never returns."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bnstat.signals import GRACE, interruptible
from tests.builders import hostile
from tests.builders.signals import started


def endless(folder: Path) -> Path:
    """Write a model that never answers, by allowed ops alone."""
    always = hostile.function("always", [hostile.const("yes", True)], "yes:output:0")
    always.signature.output_arg[0].type = tf.bool.as_datatype_enum
    library = tf.compat.v1.GraphDef().library
    library.function.extend([always, hostile.function("body", [], "a")])
    nodes = [
        hostile.const("number", np.float32(1)),
        hostile.node("loop", "While", "number", T=[tf.float32], cond="always", body="body"),
    ]
    return hostile.saved_model(folder, hostile.graph(nodes, library=library))


HANGING = """
import ctypes, os, sys, threading
import tensorflow as tf
import bnstat.estimate.passes as passes
from bnstat.__main__ import run

how, run_of = sys.argv.pop(1), tf.compat.v1.Session.run

def hang():
    # A lock of C, for which a wait goes on after a signal, so that Python handles none.
    lock = ctypes.create_string_buffer(256)
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    # A signal that comes before the second lock would be handled.
    threading.Timer(1, print, ["running"], {"flush": True}).start()
    ctypes.CDLL(None).pthread_mutex_lock(lock)

def announced(session, fetches, feeds):
    if isinstance(fetches, tuple):
        # Not by print: at its end the process would wait for the lock of standard output.
        os.write(1, b"running\\n")
    return run_of(session, fetches, feeds)

if how == "in the main thread":
    passes.interruptible = lambda call: hang()
else:
    tf.compat.v1.Session.run = announced
run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="locks of glibc")
@pytest.mark.parametrize(
    ("how", "sent"),
    [
        ("in a thread", signal.SIGTERM),
        ("in a thread", signal.SIGINT),
        ("in the main thread", signal.SIGTERM),
    ],
)
def test_while_tensorflow_hangs(how: str, sent: signal.Signals, tmp_path: Path) -> None:
    path = endless(tmp_path / "model")
    np.save(tmp_path / "x.npy", hostile.X)
    (tmp_path / "out").mkdir()
    options = ("--data", tmp_path / "x.npy", "-o", tmp_path / "out/copy")
    process = started("-c", HANGING, how, "recalibrate", path, *options, text=True)
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(sent)
        # Without an end in time this waits for the timeout; the limit is not what is tested.
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert output == "", errors
    assert os.listdir(tmp_path / "out") == []
    if how == "in a thread":
        assert process.returncode in (-sent, 128 + sent, -signal.SIGALRM), errors
    else:
        assert process.returncode == -signal.SIGALRM, errors


def test_a_call_in_a_thread_returns_and_raises() -> None:
    assert GRACE < 5
    assert interruptible(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)
    names = []
    interruptible(lambda: names.append(threading.current_thread().name))
    assert names == ["bnstat-tensorflow"]


def test_a_signal_ends_the_wait_for_a_call() -> None:
    release = threading.Event()

    def interrupt() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            interruptible(release.wait)
    finally:
        signal.signal(signal.SIGINT, kept)
        release.set()
        sender.join()
