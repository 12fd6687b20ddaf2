"""What a process keeps of its sites between messages and runs is never what it was before."""

from federation import config, ledger_of

from client.site.replica_host import forget_hosts, host_of
from dandelion.engines.local import run_local


def notes(folder, name, count):
    """A site's folder of short texts."""
    own = folder / name
    own.mkdir(exist_ok=True)
    for number in range(count):
        (own / f"{number}.txt").write_text(f"note {number} of {name}. " * 20)
    return str(own)


def test_a_node_whose_data_are_others_now_is_read_anew(tmp_path):
    forget_hosts()
    settings = config(tmp_path).to_run_config()
    counts = [
        host_of(settings, node).hello(node).examples
        for node in (
            {"site": "a", "data": notes(tmp_path, "few", 3)},
            {"site": "a", "data": notes(tmp_path, "many", 12)},
            {"site": "a", "data": str(tmp_path / "few")},
        )
    ]
    assert counts[0] < counts[1]
    assert counts[2] == counts[0]


def test_two_runs_of_one_process_read_a_folder_that_has_grown(tmp_path):
    own, sizes = notes(tmp_path, "ward", 6), []
    for name in ("first", "second"):
        chosen = config(
            tmp_path, name, dataset=own, max_samples=0, num_clients=1, num_rounds=1, eval_interval=0
        )
        run_local(chosen)
        with ledger_of(chosen) as ledger:
            sizes.append([each.examples for each in ledger.contributions(1)])
        notes(tmp_path, "ward", 12)
    assert sizes[0] < sizes[1]
