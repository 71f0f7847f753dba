"""Checks of arguments: each raises the error for its caller, and names the argument."""

from __future__ import annotations

import os
from typing import Any, Union

from pyasync._core.deadlines import MAX_TIME

StrOrBytesPath = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


def require_callable(name: str, value: Any) -> None:
    """Raise `TypeError` unless the value is a function."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")


def optional_callable(name: str, value: Any) -> None:
    """Raise `TypeError` unless the value is a function or None."""
    if value is not None:
        require_callable(name, value)


def c_string(name: str, value: StrOrBytesPath) -> bytes:
    """Return a path, or other text for the system, as bytes for C (`os.fsencode`).

    Raises `TypeError`, and `ValueError` if it has zero bytes.
    """
    encoded = os.fsencode(value)  # raises TypeError
    if b"\0" in encoded:  # C would read the part before it, which may be another file's path
        raise ValueError(f"{name} must not have zero bytes: {value!r}")
    return encoded


def require_timeout(name: str, value: float | None) -> float | None:
    """Return the value, in seconds; raise `ValueError` unless it is None or over 0.

    It is `MAX_TIME` at most, and so neither infinite nor NaN.
    """
    if value is not None and not 0 < value <= MAX_TIME:
        raise ValueError(f"{name} must be over 0 seconds, or None for no limit, not {value!r}")
    return value


def require_host(name: str, value: Any) -> None:
    """Raise `TypeError` unless the value is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")


def require_integer(name: str, value: Any, least: int, most: int) -> None:
    """Raise `TypeError` or `ValueError` unless the value is an integer in this range."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")


def require_port(port: Any) -> None:
    """Raise `TypeError` or `ValueError` unless the port is an integer from 0 to 65535."""
    require_integer("port", port, 0, 65535)


def require_descriptor(name: str, value: Any) -> int:
    """Return the descriptor: the value itself, or that of its ``fileno()``.

    Raises `TypeError`, and `ValueError` for a negative number.
    """
    number = value
    if not isinstance(value, int) and callable(getattr(value, "fileno", None)):
        number = value.fileno()
    if not isinstance(number, int):
        raise TypeError(f"{name} must be an integer or have a fileno(), not {type(value).__name__}")
    if not 0 <= number < 2**31:
        raise ValueError(f"{name}: a descriptor must be 0 or more, not {number}")
    return number
