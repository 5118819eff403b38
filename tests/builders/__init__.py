"""Helpers that write model files at test time, with TensorFlow or byte by byte."""

from __future__ import annotations

import os

import pytest

# `tf.compat.v1.layers` lives in tf-keras; to be set before TensorFlow looks for a Keras.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

pytest.register_assert_rewrite("tests.builders.oracle")
