"""The idle cost of a site is measured program by program, in processes of their own."""

import pytest

from dandelion.deployment import idle_cost
from dandelion.deployment.idle_cost import OURS, PROGRAMS
from shared.base.errors import ConfigError


@pytest.mark.skipif(not idle_cost.MEMORY.exists(), reason="only Linux says what a process holds")
def test_a_program_that_imports_more_holds_more(monkeypatch):
    few = {name: PROGRAMS[name] for name in ("Python alone", "client join, ours")}
    monkeypatch.setattr(idle_cost, "PROGRAMS", few)
    alone, ours = idle_cost.idle_cost()
    assert (alone.name, alone.ratio) == ("Python alone", 1)
    assert ours.ratio > 1
    assert "MiB resident" in ours.note


def test_programs_of_ours_and_of_flower_are_told_apart():
    for name, modules in PROGRAMS.items():
        own = [module for module in modules if not module.startswith(("flwr", "grpc"))]
        assert bool(own) == ("our" in name), name
        assert name not in {"client join, ours", "client guard, ours"} or modules == OURS


def test_a_system_that_says_nothing_of_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(idle_cost, "MEMORY", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"bench idle: .*none expected, as Linux has it"):
        idle_cost.idle_cost()
