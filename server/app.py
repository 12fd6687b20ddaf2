"""The ServerApp: Flower in, ``server.run`` out."""

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configuration that Flower hands over."""
    from server.run import serve

    logging.getLogger("dandelion").setLevel(logging.INFO)
    serve(grid, context.run_config)
