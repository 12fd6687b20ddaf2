"""A site's guard: the node's config with a guard's defaults, and the command that starts it."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from client.privacy.site_secret import load_secret
from client.sealed.identity import read_roster
from client.site.node_config import NodeConfig
from dandelion.deployment.deploy_home import Home
from dandelion.deployment.supervisor import Program
from dandelion.engines.flower_simulation import EngineError
from shared.data.local_folder import check_folder
from shared.data.resolve import source_of
from shared.protocol.site_id import site_of

ROOT = Path(__file__).resolve().parents[2]  # of this installation's packages
PRIVACY_FOLDER = "privacy"  # in a node's home
READY = "is ready"  # in the log of a guard that has started well
NOTHING = "!*"
DEFAULTS: Mapping[str, object] = {  # of a site that a server can reach; engines allow all
    "allow-modes": "zo",
    "allow-scopes": "!regex:*",
    "allow-paths": NOTHING,
    "allow-apps": NOTHING,
    "eps-range": "1e-5..1e-1",
    "answer-raster": 0.05,  # exact draws take longer for some values: the last digits are noise
}


def node_config(pairs: list[str], home: Home, app_dir: Path | None = None) -> dict[str, object]:
    """Parse and check the node's config from the command line; its files are in its home.

    Its secret is made or checked.

    Args:
        pairs: ``key=value`` each.
        home: of the node.
        app_dir: the folder of the problems that runs may import; None: there is none.

    Raises:
        ConfigError: an unknown key, an invalid value, no name of the site, data that are not here,
            or a roster without the site's key.
        BudgetError: others can read its secret.
        EngineError: a pair is not ``key=value``.
    """
    config: dict[str, object] = {
        "store": str(home.folder / "store"),
        "privacy-home": str(home.folder / PRIVACY_FOLDER),
    }
    if app_dir is not None:
        config |= {"app-dir": str(app_dir.resolve()), "allow-apps": patterns_of_apps(app_dir)}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise EngineError(f"--set key=value expected, got {pair!r}")
        config[name] = _value(name, text)
    config = {**DEFAULTS, **config}
    node = NodeConfig.of(config)
    secret = load_secret(Path(node.privacy_home))
    if node.roster:
        read_roster(Path(node.roster), site_of(config), secret)
    for own in filter(None, (node.data, node.bp_data)):
        source_of(own)
        if Path(own).is_dir():
            check_folder(Path(own), {k.replace("_", "-"): v for k, v in node.columns.items()})
    return config


def _value(name: str, text: str) -> object:
    """A value as JSON has it; a text stays one, as a list of hexadecimal keys must."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    declared = NodeConfig.kinds().get(name)
    return text if declared is str and not isinstance(value, str) else value


def patterns_of_apps(folder: Path) -> str:
    """Patterns of the modules that lie in a folder: its files and its packages."""
    files = {each.stem for each in folder.glob("*.py")}
    packages = {each.parent.name for each in folder.glob("*/__init__.py")}
    modules = sorted(files | packages)
    return ",".join(f"{name}{end}" for name in modules for end in (":*", ".*:*")) or NOTHING


def guard_program(home: Home, config: Mapping[str, object]) -> Program:
    """The program that answers for a site's data: this installation's own, not what a run brings.

    Args:
        home: of the node.
        config: of the node, checked.
    """
    pairs = [f"{name}={json.dumps(value)}" for name, value in config.items()]
    words = [word for pair in pairs for word in ("--set", pair)]
    command = [sys.executable, "-P", "-m", "dandelion", "client", "guard"]
    command += ["--home", str(home.folder), *words]
    environment = {**os.environ, "PYTHONPATH": _search_path()}
    program = Program("guard", command, home.empty, environment, home.log("guard"))
    program.well = READY
    return program


def _search_path() -> str:
    """This installation first, then where the operator has modules looked for."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))


def config_of_apps(socket: Path) -> str:
    """The node's config that Flower hands to code of a run: where the guard is, and no more."""
    return f'guard="{socket}"'
