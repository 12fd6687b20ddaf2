"""The settings of instruction data, of what is generated, and of the samples that are shown."""

from dataclasses import dataclass

from shared.base.errors import ConfigError
from shared.base.options import option
from shared.config.sections import Section

CONVERSED = ("instruction", "generation")  # tasks whose documents are conversations
BOTH = ", ".join(CONVERSED)
SEPARATOR = "|"  # between texts of one setting


# fmt: off
@dataclass(frozen=True, kw_only=True)
class TextSettings(Section):
    """Prompts and responses: their columns, how responses are generated, which are shown."""

    prompt_column: str = option(
        "", "of a folder of tables: columns that are the prompt, with commas; empty: known names",
        used_by=BOTH)
    response_column: str = option(
        "", "of a folder of tables: the column of responses, or of messages in the chat form; "
        "empty: known names", used_by=BOTH)
    packing: bool = option(
        False, "examples of a group share a row as far as they fit; each attends to those before",
        used_by="instruction")
    max_new_tokens: int = option(32, "tokens of a response that is generated", at_least=1,
                                 unit="tokens", used_by="generation")
    temperature: float = option(0.0, "0: the likeliest token each time; above: sampled, seeded",
                                at_least=0, used_by="generation, samples")
    top_p: float = option(1.0, "only the likeliest tokens of this total are sampled", above=0,
                          at_most=1, used_by="temperature above 0")
    stop_words: str = option("", f"texts at which a response ends, separated by {SEPARATOR}",
                             used_by="generation, samples")
    sample_prompts: str = option(
        "", f"shown with what the model writes at each evaluation: texts separated by {SEPARATOR},"
        " a file of a text per line, or a number of held-out prompts", resumable=True,
        path=True)
    sample_tokens: int = option(40, "tokens of a sample", at_least=1, unit="tokens",
                                used_by="sample-prompts", resumable=True)
# fmt: on

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which a response ends."""
        return tuple(word for word in self.stop_words.split(SEPARATOR) if word)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature == 0 and self.top_p != 1:
            raise ConfigError(
                f"top-p = {self.top_p} with temperature = 0: the likeliest token is taken each "
                "time; set a temperature above 0, or leave top-p out"
            )
