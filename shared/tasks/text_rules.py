"""What cannot work together of prompts, responses and samples."""

from shared.base.errors import ConfigError
from shared.base.options import options_of
from shared.config.schema import Config
from shared.config.text_section import CONVERSED, TextSettings

ANYWHERE = ("sample_prompts", "sample_tokens", "temperature", "top_p", "stop_words")


def check_text(c: Config) -> None:
    """Refuse settings of conversations for a task that has none, and what packing excludes.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    if c.data.task not in CONVERSED:
        _check_unused(c)
    if c.text.packing and c.data.task != "instruction":
        raise ConfigError(
            f"packing with task {c.data.task!r}: rows of several conversations have no response "
            "of their own to be compared; use task instruction, or packing = false"
        )


def _check_unused(c: Config) -> None:
    for name, each in options_of(TextSettings).items():
        value = getattr(c.text, name)
        if name not in ANYWHERE and value != each.default:
            raise ConfigError(
                f"{each.key} = {value!r} needs task {' or '.join(CONVERSED)}, got {c.data.task!r}"
            )
