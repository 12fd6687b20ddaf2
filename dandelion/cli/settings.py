"""``dandelion settings``: every setting with its default, its meaning and its range."""

import sys
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Column, Table

from dandelion.cli.console import JsonOption, show_table
from shared.base.errors import ConfigError


def settings(
    word: Annotated[str, typer.Argument(help="Only those whose key or meaning has it.")] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All of them, as the page of the documentation.")
    ] = False,
    presets: Annotated[
        bool, typer.Option("--presets", help="What --preset may name, instead of settings.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Every setting for --set and TOML files: default, meaning, unit, range, and who uses it."""
    if presets:
        _list_presets(as_json)
        return
    from dandelion.settings import reference
    from shared.training.components import all_keys

    if markdown:
        sys.stdout.write(reference.markdown())
        return
    groups = list(reference.groups(word))
    if not groups:
        from shared.config.schema import unknown_setting

        raise ConfigError(str(unknown_setting(word, all_keys())))
    tables = []
    for group in groups:
        table = Table(
            Column("key", no_wrap=True), "default", "meaning",
            title=group.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        )  # fmt: skip
        for each in group.options:
            facts = reference.facts(each)
            meaning = f"{each.meaning} [{facts}]" if facts else each.meaning
            table.add_row(each.key, reference.toml_of(each.default), meaning.replace("[", r"\["))
        tables.append(table)
    show_table(Group(*tables), as_json)


def _list_presets(as_json: bool) -> None:
    """Show each preset with its model, and the scopes that it has settings for."""
    from dandelion.settings.presets import RECIPES

    table = Table("preset", "model", "scopes", "what", box=SIMPLE_HEAD)
    for name, recipe in RECIPES.items():
        scopes = [scope for model, scope in recipe.scopes if model == recipe.model]
        usual = str(recipe.models.get(recipe.model, {}).get("scope", "full"))
        table.add_row(name, recipe.model, ", ".join(dict.fromkeys([usual, *scopes])), recipe.about)
    show_table(table, as_json)
