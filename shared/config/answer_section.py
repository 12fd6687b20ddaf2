"""The settings of questions with choices, and of numbers that are estimated."""

from dataclasses import dataclass

from shared.base.options import option
from shared.config.sections import Section

CHOOSING, ESTIMATING = "multiple-choice", "regression"  # names of tasks


# fmt: off
@dataclass(frozen=True, kw_only=True)
class AnswerSettings(Section):
    """Which columns hold choices, right answers and numbers, and how numbers are standardised."""

    choice_columns: str = option(
        "", "of a folder of tables: the column of lists of choices, or one for each choice, with "
        "commas; empty: known names", used_by=CHOOSING)
    answer_column: str = option(
        "", "of a folder of tables: which choice is right, by number from 0, letter or text; "
        "empty: known names", used_by=CHOOSING)
    choice_prompt: str = option("Question: {text} Answer:", "what a model reads before a choice",
                                used_by=CHOOSING)
    prompt_form: str = option(
        "text", "how a causal model reads prompt or choice-prompt: as it stands (text), or as "
        "turns 'system: …', 'user: …', 'assistant: …', separated by |, by its chat template",
        choices=("text", "chat"), used_by=f"classification, {CHOOSING}")
    more_prompts: str = option(
        "", "further prompts, with || between them; features of a text after the second prompt "
        "are last@2, layer:<k>:<pooling>@2; one that begins with a role is turns of a chat",
        used_by="classification")
    target_column: str = option("", "of a folder of tables: the column of numbers; empty: known "
                                "names", used_by=ESTIMATING)
    target_mean: float = option(
        0.0, "numbers are estimated as differences from it; the same for all sites",
        used_by=ESTIMATING)
    target_scale: float = option(
        1.0, "and in units of it: their deviation; dandelion data inspect says both", above=0,
        used_by=ESTIMATING)
# fmt: on
