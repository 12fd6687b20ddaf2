"""The ServerApp hands Flower's grid and configuration to ``server.run``."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configuration that Flower hands over."""
    from server.reporting.status_line import LineLog
    from server.run import serve
    from shared.base.errors import ConfigError
    from shared.config.schema import Config

    if context.run_config.get("merge-clients"):
        raise ConfigError("merge-clients: only the local engine has all clients in one process")
    serve(grid, Config.from_run_config(context.run_config), LineLog())
