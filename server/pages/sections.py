"""The sections of a run's report, each made from the ledger and the files beside it."""

import csv
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.ledger.reader import LedgerReader
from server.ledger.records import Refusal
from server.pages.charts import Figure, Series
from server.pages.facts import SettingRow, privacy_rows
from server.pages.html import Html, PagePart, element, join, part, prose, table
from server.reporting.class_choices import CLASSES_CSV, CONFUSION_PNG
from server.reporting.data_distribution import COLOURS, ShardSummary
from server.reporting.loss_plot import SMOOTHED_FROM, Curves, loss_title, smooth
from server.reporting.round_worth import verdict_of, worth_of_run
from server.reporting.status_line import size_text
from shared.config.schema import Config

MOST_SITES, MOST_REFUSALS, MOST_NAMES = 200, 200, 6
SAMPLES = "samples.md"  # texts that the model wrote while it trained
MOST_CHARACTERS = 200_000  # of these


def headline(ledger: LedgerReader, curves: Curves) -> Html:
    """What the run reached, and what it cost."""
    rows = [("held-out loss", _change(curves.held_out))] if curves.held_out else []
    for name, series in ledger.scores().items():
        rows.append((f"held-out {name}", _change([value for _, value in series])))
    rows += [
        ("rounds", f"{ledger.last_round:,}"),
        ("sites", f"{ledger.count_contributors():,}"),
        ("payload per client", size_text(curves.spent[-1])),
        ("time in rounds", f"{ledger.totals().seconds:,.1f} s"),
    ]
    tiles = [element("div", element("dt", name), element("dd", value)) for name, value in rows]
    return element("dl", *tiles, class_="numbers")


def show_curves(ledger: LedgerReader, curves: Curves, config: Config) -> PagePart:
    """The losses, and every score of the task, against rounds and against bytes."""
    if not curves.rounds:
        return part("Curves", element("p", "No round is committed yet."))
    rewinds = [rewind.round for rewind in ledger.rewinds()]
    is_long = len(curves.sites) >= SMOOTHED_FROM and all(map(math.isfinite, curves.sites))
    losses = smooth(curves.sites) if is_long else curves.sites
    title = "at the sites (smoothed)" if is_long else "at the sites"
    sites = Series(title, "sites", dict(zip(curves.rounds, losses, strict=True)))
    held_out = dict(zip(curves.evaluated, curves.held_out, strict=True))
    series = [sites, Series("held out", "held-out", held_out)]
    figures = [Figure("Loss", loss_title(config), series, curves.spent, rewinds)]
    for name, values in ledger.scores().items():
        score = Series("held out", "held-out", dict(values))
        figures.append(Figure(name.capitalize(), name, [score], curves.spent, rewinds))
    worth = worth_of_run(config, ledger)
    verdict = [element("p", verdict_of(worth, config))] if worth is not None else []
    return part("Curves", *(figure.html() for figure in figures), *verdict)


def show_costs(ledger: LedgerReader) -> PagePart:
    """Bytes, forward passes and seconds of the whole run."""
    up, down = ledger.traffic_totals("up"), ledger.traffic_totals("down")
    means = ledger.mean_bytes("up"), ledger.mean_bytes("down")
    rows = [
        ("payload", "bytes as we encode them", size_text(up.payload), size_text(down.payload)),
        ("messages", "bytes as Flower serialises them", *map(size_text, (up[1], down[1]))),
        ("payload, each round", "mean of a site", *(size_text(mean[0]) for mean in means)),
        ("messages, each round", "mean of a site", *(size_text(mean[1]) for mean in means)),
    ]
    totals = ledger.totals()
    more = (
        f"{totals.forwards:,} forward passes of all sites (a backward pass counts as two); "
        f"{size_text(ledger.entry_bytes())} of entries in the ledger."
    )
    titles = ["bytes", "what is counted", "up", "down"]
    return part("Costs", table("Bytes of all sites", titles, rows, "up|down"), element("p", more))


def show_sites(ledger: LedgerReader, shards: Sequence[ShardSummary]) -> PagePart:
    """Every site: what it holds, and what it did."""
    states, rounds = ledger.site_states(), ledger.count_contributions()
    examples = {each.site: each.examples for each in ledger.sites()}
    pieces = dict(zip(_names_of(ledger, shards), shards, strict=False))
    colours = _colours(shards)
    rows = [
        (
            each.site, each.device or "–", f"{examples.get(each.site, 0):,}",
            _holding(pieces.get(each.site), colours), f"{rounds.get(each.site, 0):,}",
            "–" if each.loss is None else f"{each.loss:.4g}",
            size_text(each.bytes_up), size_text(each.bytes_down),
        )
        for each in states[:MOST_SITES]
    ]  # fmt: skip
    titles = ["site", "device", "examples", "holds", "rounds", "last loss", "up", "down"]
    parts = [table("Sites", titles, rows, "examples|rounds|last loss|up|down")]
    if len(states) > MOST_SITES:
        more = f"{len(states) - MOST_SITES:,} more sites are in clients.csv and shards.csv."
        parts.append(element("p", more))
    return part("Sites and their data", *parts)


def show_refusals(ledger: LedgerReader) -> PagePart:
    """Replies that were not used, sites that the run does without, and rewinds."""
    parts: list[Html] = []
    if refusals := _sum_refusals(ledger.refusals()):
        titles = ["site", "reason", "replies", "last round", "last detail"]
        parts.append(table("Refused replies", titles, refusals, "replies|last round"))
    if excluded := ledger.exclusions():
        parts.append(table("Sites that were left out", ["site", "why"], excluded.items()))
    if rewinds := ledger.rewinds():
        rows = [(r.round, r.back_to, f"{r.scale:.3g}", r.reason) for r in rewinds]
        titles = ["round", "back to", "rates ×", "reason"]
        parts.append(table("Rewinds", titles, rows, "back to|rates ×"))
    if skips := ledger.count_skips():
        parts.append(element("p", f"{skips:,} attempts at a round had too few valid replies."))
    return part("Refusals", *(parts or [element("p", "No reply was refused.")]))


def show_privacy(ledger: LedgerReader, config: Config) -> PagePart:
    """What the run cost its sites, in (ε, δ)."""
    if not config.privacy.is_local:
        text = f"privacy = {config.privacy.mode}: sites sent numbers without noise of their own."
        return part("Privacy", element("p", text))
    if config.privacy.is_sealed:
        text = "the server saw sums of sites alone; what that cost, each site's own account says."
        return part("Privacy", element("p", f"privacy = {config.privacy.mode}: {text}"))
    titles = ["rounds of a site", "cost", "sites"]
    return part(
        "Privacy",
        table(f"Spent, by {config.privacy.unit}", titles, privacy_rows(ledger, config), "sites"),
        element("p", "This is what the ledger shows of this run. Each site's own account counts ",
                "its other runs too, and alone decides whether it goes on."),
    )  # fmt: skip


def show_classes(folder: Path) -> PagePart | None:
    """How well each class is recognised, and what it is taken for; nothing without classes."""
    path, picture = folder / CLASSES_CSV, folder / CONFUSION_PNG
    if not path.exists():
        return None
    titles, *rows = csv.reader(path.read_text("utf-8").splitlines())
    parts = [table("Classes of the held-out examples", titles, rows, "|".join(titles[1:]))]
    if picture.exists():
        data = f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}"
        words = "what the examples of each class were taken for; the table has the numbers"
        parts.append(element("p", element("img", src=data, alt=words, class_="picture")))
    return part("Classes", *parts)


def show_samples(folder: Path) -> PagePart | None:
    """What the model wrote while it trained; nothing if no file has it."""
    path = folder / SAMPLES
    if not path.exists():
        return None
    text = path.read_text("utf-8", "replace")
    return part("Samples", prose(text[-MOST_CHARACTERS:]))


def show_settings(rows: Sequence[SettingRow]) -> PagePart:
    """The settings that differ from their defaults, and all."""
    changed = [(each.key, str(each.value), str(each.default), each.meaning)
               for each in rows if each.is_changed]  # fmt: skip
    every = [(each.key, str(each.value), each.meaning) for each in rows]
    titles = ["setting", "value", "default", "meaning"]
    whole = table("All settings", ["setting", "value", "meaning"], every)
    return part(
        "Settings",
        table("Settings that differ from their defaults", titles, changed),
        element("details", element("summary", f"All {len(rows)} settings"), whole),
    )


def show_identity(rows: Iterable[tuple[str, str]]) -> PagePart:
    """What the run was, and the hashes that bind it."""
    cells = [(name, element("code", value) if _is_hash(value) else value) for name, value in rows]
    verify = element("code", "dandelion ledger verify RUN")
    return part(
        "Identity",
        table("The run", ["name", "value"], cells),
        element("p", verify, " rebuilds every round from base model and ledger, and compares."),
    )


def _is_hash(value: str) -> bool:
    return len(value) >= 32 and set(value) <= set("0123456789abcdef")


def _change(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} → {values[-1]:.4g}"


def _names_of(ledger: LedgerReader, shards: Sequence[ShardSummary]) -> list[str]:
    """The site of each shard: a shard of the partition is named by its number."""
    by_slot = {str(each.slot - 1): each.site for each in ledger.sites()}
    return [by_slot.get(shard.site, shard.site) for shard in shards]


def _colours(shards: Sequence[ShardSummary]) -> dict[str, str]:
    """A colour for each class or group, while there are colours enough."""
    names = list(dict.fromkeys(name for s in shards for name in (s.classes or s.groups)))
    return dict(zip(names, COLOURS, strict=False)) if len(names) <= len(COLOURS) else {}


def _holding(shard: ShardSummary | None, colours: dict[str, str]) -> Html | str:
    """The classes or groups of a shard, the largest first; with a bar if there are colours."""
    pieces = {} if shard is None else shard.classes or shard.groups
    if shard is None or not pieces:
        return "not known here"
    largest = sorted(pieces.items(), key=lambda piece: -piece[1])
    texts = [f"{name} {count:,}" for name, count in largest[:MOST_NAMES] if count]
    if len(largest) > MOST_NAMES:
        texts.append(f"and {len(largest) - MOST_NAMES} more")
    if not colours:
        return ", ".join(texts)
    bars, start, total = [], 0.0, max(1, shard.examples)
    for name, count in pieces.items():
        width = 100 * count / total
        bars.append(element("rect", x=f"{start:.2f}", y=0, width=f"{width:.2f}", height=8,
                            fill=colours[name]))  # fmt: skip
        start += width
    bar = element("svg", *bars, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none",
                  aria_hidden="true")  # fmt: skip
    return join([bar, element("span", ", ".join(texts))])


def _sum_refusals(refusals: Iterable[Refusal]) -> list[tuple[str, str, str, str, str]]:
    """The refusals of each site and reason as one row, the most frequent first."""
    counts: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], Refusal] = {}
    for each in refusals:
        key = each.site, each.reason
        counts[key], last[key] = counts.get(key, 0) + 1, each
    order = sorted(counts, key=lambda key: -counts[key])[:MOST_REFUSALS]
    return [(*key, f"{counts[key]:,}", str(last[key].round), last[key].detail) for key in order]
