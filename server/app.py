"""The ServerApp: Flower in, ``server.run`` out."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configuration that Flower hands over."""
    from server.lines import LineLog
    from server.run import serve

    serve(grid, context.run_config, LineLog())
