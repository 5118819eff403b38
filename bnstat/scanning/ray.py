"""A Ray cluster as joblib uses it."""

from __future__ import annotations

from typing import Final

from joblib import register_parallel_backend
from ray.util.joblib.ray_backend import RayBackend

BACKEND: Final = "bnstat-ray"
"""The backend's name for joblib."""


class _Streaming(RayBackend):  # type: ignore[misc]
    """joblib's backend for Ray, which gives results as they come.

    It takes after that for processes forked here, of which joblib does not allow that; Ray's pool
    of actors has the same callbacks, and stands it.
    """

    supports_return_generator = True


register_parallel_backend(BACKEND, _Streaming)
