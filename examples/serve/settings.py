"""What the server is told by environment variables: read and checked before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

PREFIX = "SKGPT_SERVE_"


class SettingsError(ValueError):
    """An environment variable is missing, unknown or out of range; the message names it."""


def _number(default: float, at_least: float, at_most: float = math.inf) -> Any:
    return field(default=default, metadata={"at_least": at_least, "at_most": at_most})


@dataclass(frozen=True)
class Settings:
    """Each field is the variable of its name in capitals, behind ``SKGPT_SERVE_``.

    Parameters
    ----------
    folder : str
        What `skgpt.save` wrote.
    trusted : str
        Names of functions and types of your own in a Pipeline's steps, with commas between them.
    host : str
    port : int
        0 takes any that is free; the log says which.
    max_texts : int
        Texts in one request.
    max_characters : int
        Characters in one text.
    max_bytes : int
        Bytes in a request's body.
    batch_texts : int
        Texts of waiting requests that are classified together. A request is never divided, so one
        with more texts goes alone. With 1, every request does.
    batch_wait_ms : float
        How long a request may wait for others to share its batch, where the one before it had
        company.
    queue_texts : int
        Texts that may be unanswered at once; what comes beyond is refused.
    stop_seconds : int
        How long a stop waits for requests that were accepted.
    """

    folder: str
    trusted: str = ""
    host: str = "127.0.0.1"
    port: int = _number(8000, 0, 65535)
    max_texts: int = _number(64, 1)
    max_characters: int = _number(20_000, 1)
    max_bytes: int = _number(2_000_000, 1)
    batch_texts: int = _number(32, 1)
    batch_wait_ms: float = _number(5.0, 0, 60_000)
    queue_texts: int = _number(1024, 1)
    stop_seconds: int = _number(30, 1)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Return the settings that the variables make; an empty variable counts as none.

        Raises
        ------
        SettingsError
            If one can't be what it should, or there is none of that name.
        """
        own = {
            name.removeprefix(PREFIX).lower(): text
            for name, text in environment.items()
            if name.startswith(PREFIX) and text
        }
        known = {each.name: each for each in fields(cls)}
        if unknown := sorted(own.keys() - known):
            names = ", ".join(PREFIX + name.upper() for name in known)
            raise SettingsError(
                f"Settings must be among {names}. Got {PREFIX}{unknown[0].upper()}: rename or "
                "unset it."
            )
        for name, each in known.items():
            if each.default is MISSING and name not in own:
                raise SettingsError(
                    f"{PREFIX}{name.upper()} must name a folder that skgpt.save wrote. It isn't "
                    "set."
                )
        return cls(**{name: _value(known[name], text) for name, text in own.items()})


def _value(of: Field[Any], text: str) -> Any:
    if of.type is str:
        return text
    lowest, highest = of.metadata["at_least"], of.metadata["at_most"]
    kind = "an int" if of.type is int else "a number"
    try:
        value = int(text) if of.type is int else float(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        limits = f">= {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise SettingsError(f"{PREFIX}{of.name.upper()} must be {kind} {limits}. Got {text!r}.")
    return value
