"""The two apps of a Flower app folder of one's own: its ``pyproject.toml`` names them.

    [tool.flwr.app.components]
    serverapp = "dandelion.apps:server_app"
    clientapp = "dandelion.apps:client_app"

    [tool.flwr.app.config]
    app = "vision:problem"

``flwr run .`` in that folder then trains its problem with the settings of the last table.
"""

from client.app import app as client_app
from server.app import app as server_app

__all__ = ["client_app", "server_app"]
