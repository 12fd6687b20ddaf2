"""What cannot work together of prompts, responses, answers and samples."""

from shared.base.errors import ConfigError
from shared.base.options import options_of
from shared.config.answer_section import AnswerSettings
from shared.config.schema import Config
from shared.config.text_section import CONVERSED, TextSettings

ANYWHERE = ("sample_prompts", "sample_tokens", "temperature", "top_p", "stop_words")

WRITING = ("language-modelling", *CONVERSED)


def check_text(c: Config) -> None:
    """Refuse settings of other tasks than the run's, and what packing excludes.

    Raises:
        ConfigError: says which settings, and what to set instead.
    """
    _check_answers(c)
    _check_prompts(c)
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


def _check_answers(c: Config) -> None:
    """Settings of questions and numbers: whoever gives one and no task would train on texts."""
    for name, each in options_of(AnswerSettings).items():
        tasks, value = each.used_by.split(", "), getattr(c.answer, name)
        if value != each.default and c.data.task not in tasks:
            raise ConfigError(
                f"{each.key} = {value} needs task {' or '.join(tasks)}, got {c.data.task!r}"
            )


def _check_prompts(c: Config) -> None:
    """Further prompts are read for the features of label words alone."""
    if c.answer.more_prompts and c.model.scope != "words":
        raise ConfigError(
            f"more-prompts with scope {c.model.scope!r}: only kept features are of several "
            "prompts; use scope words with features such as last+last@2, or leave it out"
        )


def _check_unused(c: Config) -> None:
    for name, each in options_of(TextSettings).items():
        value = getattr(c.text, name)
        if name not in ANYWHERE and value != each.default:
            raise ConfigError(
                f"{each.key} = {value!r} needs task {' or '.join(CONVERSED)}, got {c.data.task!r}"
            )
