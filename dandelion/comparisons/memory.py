"""Peak memory of one client, as the Linux kernel counts it for a fresh process of one site.

``python -m dandelion.comparisons.memory CONFIG.toml`` prints two numbers of bytes: the peak of the
process, and how much of it was added during a round.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from shared.config.schema import Config, to_toml
from shared.training.validate import configure

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def client_memory(config: Config) -> tuple[int, int] | None:
    """Peak bytes of a client, and those added during a round: the larger of rounds 1 and 2.

    None if the system has no ``/proc`` or the process fails.
    """
    if not STATUS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.toml")
        file.write_text(to_toml(config.to_run_config()))
        command = [sys.executable, "-m", "dandelion.comparisons.memory", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        peak, more = done.stdout.split()
        return int(peak), int(more)
    except ValueError:
        return None


def measure(config: Config) -> tuple[int, int]:
    """Do rounds 1 and 2 of site 0 in this process, once to warm up and once to measure."""
    from client.site.replica_host import ReplicaHost
    from shared.protocol.messages import Request

    host, node = (
        ReplicaHost(config),
        {"partition-id": 0, "num-partitions": config.federation.num_clients},
    )
    site, oracle = host._site(node), host._oracle
    peak = more = 0
    for is_warm in (False, True):
        for round_ in (1, 2):
            before = _status("VmRSS")
            PEAK_RESET.write_text("5")
            site.measure(oracle, Request(round_, config.optimizer.rate, b"", b"", b""))
            if is_warm:
                peak = max(peak, _status("VmHWM"))
                more = max(more, _status("VmHWM") - before)
    return peak, more


def _status(name: str) -> int:
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the two numbers that ``client_memory`` reads."""
    import tomllib

    config = configure(tomllib.loads(Path(sys.argv[1]).read_text()))
    peak, more = measure(config)
    sys.stdout.write(f"{peak} {more}\n")


if __name__ == "__main__":
    main()
