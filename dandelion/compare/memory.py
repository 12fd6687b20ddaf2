"""Peak memory of one client: a fresh process does one site's round and asks the kernel (Linux).

``python -m dandelion.compare.memory CONFIG.toml`` prints two numbers of bytes: the process at its
most, and how much of it came on top while a round was worked on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from shared.config.schema import Config, to_toml
from shared.training.validate import configure

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def client_memory(config: Config) -> tuple[int, int] | None:
    """Bytes of a client at its most and on top of its rest, the larger of rounds 1 and 2.

    None where the system does not tell.
    """
    if not STATUS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.toml")
        file.write_text(to_toml(config.to_run_config()))
        command = [sys.executable, "-m", "dandelion.compare.memory", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        peak, more = done.stdout.split()
        return int(peak), int(more)
    except ValueError:
        return None


def measure(config: Config) -> tuple[int, int]:
    """Work on rounds 1 and 2 of site 0 in this process, once to warm up and once to look."""
    from client.site.replica_host import ReplicaHost
    from shared.protocol.messages import Request

    host, node = ReplicaHost(config), {"partition-id": 0, "num-partitions": config.num_clients}
    site, oracle = host._site(node), host._learner
    peak = more = 0
    for look in (False, True):
        for round_ in (1, 2):
            before = _status("VmRSS")
            PEAK_RESET.write_text("5")
            site.measure(oracle, Request(round_, config.learning_rate, b"", b"", b""))
            if look:
                peak = max(peak, _status("VmHWM"))
                more = max(more, _status("VmHWM") - before)
    return peak, more


def _status(name: str) -> int:
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print what ``client_memory`` reads."""
    import tomllib

    config = configure(tomllib.loads(Path(sys.argv[1]).read_text()))
    peak, more = measure(config)
    sys.stdout.write(f"{peak} {more}\n")


if __name__ == "__main__":
    main()
