"""What this package needs and a plain installation does not have."""

from __future__ import annotations

from refit_agent.authoring.errors import AuthoringMissing


def require_onnx() -> None:
    """Import the package onnx.

    Raises:
        AuthoringMissing: it is not installed, or does not work.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise AuthoringMissing(library="onnx", detail=str(error)) from error
