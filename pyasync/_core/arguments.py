"""Checks of arguments. All refuse in the same words, ``NAME must be ALLOWED, not GIVEN``.

A wrong type is a `TypeError`, a value out of range a `ValueError`. Paths that run for each message
or timer compare for themselves, and come here only when that has failed.
"""

from __future__ import annotations

import inspect
import os
import reprlib
from functools import partial
from numbers import Real
from operator import index
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, Union

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class HasFileno(Protocol):
    """An object that has a descriptor, such as a socket or an open file."""

    def fileno(self) -> int: ...


#: A path, or another text for the system.
StrOrBytesPath = Union[str, "ReadableBuffer", "os.PathLike[str]", "os.PathLike[bytes]"]

#: What `as_path` takes, for messages.
PATH = "a str, bytes-like or os.PathLike"

#: Flags of the code of an ``async def``: nothing awaits what a callback returns.
ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

#: A descriptor, or what has one: a socket or an open file.
Descriptor = Union[int, "HasFileno"]

#: The longest time, in seconds: some 300 years. In milliseconds it fits into C's int64_t.
MAX_TIME = 1e10

#: The greatest descriptor: C's int.
MAX_FD = 2**31 - 1

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """Return a value for a message: its repr, shortened."""
    try:
        return _short.repr(value)
    except Exception:  # such as an integer of more digits than sys.set_int_max_str_digits allows
        return f"{type(value).__name__} of no repr"


def wrong_type(name: str, allowed: str, value: Any) -> TypeError:
    """Return the error for a value of a wrong type."""
    return TypeError(f"{name} must be {allowed}, not {shown(value)}")


def wrong_value(name: str, allowed: str, value: Any) -> ValueError:
    """Return the error for a value out of range."""
    return ValueError(f"{name} must be {allowed}, not {shown(value)}")


# Functions


def require_callable(name: str, value: Any, allowed: str = "a function") -> None:
    """Raise `TypeError` unless the value is a function, and no ``async def``."""
    code = getattr(value, "__code__", None)  # also of a bound method
    if code is None:
        if not callable(value):
            raise wrong_type(name, allowed, value)
        function = value
        while isinstance(function, partial):
            function = function.func
        if not hasattr(function, "__code__"):
            function = type(function).__call__
        code = getattr(function, "__code__", None)
    if getattr(code, "co_flags", 0) & ASYNC:
        raise _async_error(name, allowed, value)


def refuse_coroutine(name: str, callback: Any, result: Any) -> None:
    """Raise `TypeError` if a callback's result is a coroutine: the callback is an ``async def``."""
    if isinstance(result, CoroutineType):
        result.close()  # or Python would warn too that nothing has awaited it
    if isinstance(result, (CoroutineType, AsyncGeneratorType)):
        raise _async_error(name, "a function", callback)


def _async_error(name: str, allowed: str, value: Any) -> TypeError:
    return TypeError(
        f"{name} must be {allowed}, not the async {shown(value)}: nothing would await it. "
        "In a loop of pyasync.aio a function can start it with asyncio.create_task"
    )


def optional_callable(name: str, value: Any) -> None:
    """Raise `TypeError` unless the value is a function or None."""
    if value is not None:
        require_callable(name, value, "a function or None")


# Numbers


def require_flag(name: str, value: Any) -> bool:
    """Return the value; raise `TypeError` unless it is true or false, or 1 or 0."""
    if value is not True and value is not False and not (type(value) is int and value in (0, 1)):
        raise wrong_type(name, "True or False", value)
    return bool(value)


def require_integer(name: str, value: Any, least: int, most: int, or_none: str = "") -> int:
    """Return the value as an `int`; raise unless it is an integer in this range.

    ``or_none`` is ", or None" where the caller takes None as well: for the message.
    """
    if type(value) is int and least <= value <= most:
        return value
    allowed = f"an integer from {least} to {most}{or_none}"
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise wrong_type(name, allowed, value)
    number = index(value)
    if not least <= number <= most:
        raise wrong_value(name, allowed, value)
    return number


def require_port(port: Any, name: str = "port") -> int:
    """Return the port; raise unless it is an integer from 0 to 65535."""
    return require_integer(name, port, 0, 65535)


def require_time(
    name: str,
    value: Any,
    least: float = 0,
    most: float = MAX_TIME,
    *,
    over: bool = False,
    or_none: str = "",
) -> float:
    """Return the value, in seconds; raise unless it is a number in this range.

    ``over``: it must be greater than ``least``. A range leaves out infinity and NaN too.
    """
    # By its type first, because to ask an abstract class such as Real takes several calls.
    real = type(value) is float or type(value) is int or isinstance(value, Real)
    if not real or not least <= value <= most or (over and value == least):
        raise time_error(name, value, least, most, over=over, or_none=or_none)
    return value  # type: ignore[no-any-return]


def time_error(
    name: str,
    value: Any,
    least: float = 0,
    most: float = MAX_TIME,
    *,
    over: bool = False,
    or_none: str = "",
) -> Exception:
    """Return the error for a time that `require_time` refuses."""
    word, words = ("over", "and up to") if over else ("from", "to")
    allowed = f"a number of seconds {word} {least:g} {words} {most:g}{or_none}"
    error = wrong_value if isinstance(value, Real) else wrong_type
    return error(name, allowed, value)


def require_timeout(name: str, value: float | None) -> float | None:
    """Return the value, in seconds; raise unless it is None, or a number over 0."""
    if value is not None:
        require_time(name, value, over=True, or_none=", or None")
    return value


# Text, data and the system's things


def as_path(name: str, value: Any, allowed: str = PATH) -> str | bytes:
    """Return a path as `str`, or, where it is bytes-like, as `bytes`. Raises `TypeError`."""
    try:
        path: str | bytes = os.fspath(value)
    except TypeError:
        try:
            return bytes(memoryview(value))
        except TypeError:
            raise wrong_type(name, allowed, value) from None
    return path


def c_string(name: str, value: StrOrBytesPath) -> bytes:
    """Return a path, or other text for the system, as bytes for C (`os.fsencode`).

    Raises `TypeError`, and `ValueError` if it has zero bytes, or what no file name can have.
    """
    allowed = PATH
    try:
        encoded = os.fsencode(as_path(name, value))
    except UnicodeEncodeError:
        raise wrong_value(name, f"text that {os.fsencode.__name__} takes", value) from None
    if b"\0" in encoded:  # C would read the part before it, which may be another file's path
        raise wrong_value(name, f"{allowed} without zero bytes", value)
    return encoded


def require_host(name: str, value: Any) -> None:
    """Raise unless the value is a string that can be a host's name or address."""
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    if "\0" in value:  # C would read the part before it, which is another host
        raise wrong_value(name, "a string without zero bytes", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise wrong_value(name, "a string without lone surrogates", value) from None


def require_descriptor(name: str, value: Any, allowed: str | None = None) -> int:
    """Return the descriptor, an integer, or of an object that has a ``fileno()``."""
    if allowed is None:
        allowed = f"a descriptor (an integer from 0 to {MAX_FD}), or have a fileno()"
    number = value
    if not hasattr(type(value), "__index__") and callable(getattr(value, "fileno", None)):
        try:
            number = value.fileno()
        except (OSError, ValueError) as error:  # it is closed, or has none, as an io.BytesIO
            raise wrong_value(name, allowed, value) from error
    if isinstance(number, bool) or not hasattr(type(number), "__index__"):
        raise wrong_type(name, allowed, value)
    number = index(number)
    if not 0 <= number <= MAX_FD:
        raise wrong_value(name, allowed, value)
    return number


def require_instance(name: str, value: Any, *kinds: type) -> None:
    """Raise `TypeError` unless the value is of one of these classes."""
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        article = "an" if names[0] in "AEIOU" else "a"
        raise wrong_type(name, f"{article} {names}", value)
