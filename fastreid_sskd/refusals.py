"""What is refused, told in one message with an exit status, and what has failed, with its traceback."""

import contextlib
import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

#: exit status of a command that refuses what it was given
REFUSED = 2


class UnknownNameError(KeyError):
    """A key of the config, or name of a data set, that does not exist; printed without KeyError's quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


_OF_INPUT = (ImportError, OSError, ValueError, UnknownNameError)


def nearest(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that may be meant; "" if none is near."""
    by_capitals = {name.upper(): name for name in known}
    near = difflib.get_close_matches(given.upper(), by_capitals, 1)
    return f"; the nearest that there is: {by_capitals[near[0]]}" if near else ""


@contextlib.contextmanager
def checking(*also: type[Exception]) -> Iterator[None]:
    """What is given is read and checked in the body, and nothing is trained: its errors are refusals.

    Also a decorator.

    They keep their type and get the attribute ``exit_status``. An error class may have one of its own.

    Args:
        also: errors that are refusals here, beside those of input: ImportError, OSError, ValueError,
            UnknownNameError.
    """
    try:
        yield
    except (*_OF_INPUT, *also) as error:
        if not is_refusal(error):
            error.exit_status = REFUSED
        raise


def optional(package: str, refusal: str) -> ModuleType:
    """Import a package that may not be installed; without it, an ImportError says ``refusal`` and why."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{refusal} ({error})") from error


@contextlib.contextmanager
def said_of(what: str) -> Iterator[None]:
    """Errors of input that the body raises say first what they are about, and keep their type."""
    try:
        yield
    except UnicodeError:  # cannot be made of a message alone
        raise
    except _OF_INPUT as error:
        raise type(error)(f"{what}: {error}") from error


def is_refusal(error: BaseException) -> bool:
    """Whether an error tells the user something, so that its traceback would not."""
    return hasattr(error, "exit_status")


def exit_status(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's ``main``: a refusal is printed, without a traceback, and becomes the exit status.

    Of several processes the first on each machine prints it.
    """

    @functools.wraps(main)
    def status(*args: Any, **kwargs: Any) -> int:
        if hasattr(sys.stdout, "reconfigure"):  # a file's name need not be text
            sys.stdout.reconfigure(errors="surrogateescape")
        try:
            return main(*args, **kwargs)
        except Exception as error:
            if not is_refusal(error):
                raise
            if os.environ.get("LOCAL_RANK", "0") == "0":
                sys.stderr.write(f"{error}\n")
            return error.exit_status

    return status
