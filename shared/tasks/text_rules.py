"""What cannot work together of prompts, responses and samples."""

from shared.base.errors import ConfigError
from shared.base.options import options_of
from shared.config.answer_section import CHOOSING
from shared.config.schema import Config
from shared.config.text_section import CONVERSED, TextSettings
from shared.generation.prompt_frame import CHAT

ANYWHERE = ("sample_prompts", "sample_tokens", "temperature", "top_p", "stop_words")

WRITING = ("language-modelling", *CONVERSED)
PROMPTED = ("classification", CHOOSING)  # tasks that put a prompt around a text


def check_text(c: Config) -> None:
    """Refuse settings of conversations for a task that has none, and what packing excludes.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    if c.answer.prompt_form == CHAT and c.data.task not in PROMPTED:
        raise ConfigError(
            f"prompt-form = chat needs task {' or '.join(PROMPTED)}, got {c.data.task!r}"
        )
    if c.data.task not in CONVERSED:
        _check_unused(c)
    if c.text.sample_prompts and (c.model.app or c.data.task not in WRITING):
        what = f"app {c.model.app!r}" if c.model.app else f"task {c.data.task!r}"
        raise ConfigError(
            f"sample-prompts with {what}: nothing is written there; use task "
            f"{', '.join(WRITING)}, or leave the setting out"
        )
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
