"""Flat settings as TOML text; the standard library reads TOML but does not write it."""

import json
from collections.abc import Mapping


def to_toml(settings: Mapping[str, str | int | float | bool]) -> str:
    """One ``key = value`` line per setting; ``tomllib.loads`` gives the same mapping back."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in settings.items())


def _value(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON escapes what TOML does, but for DEL; beyond ASCII its escapes would not be TOML's.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
