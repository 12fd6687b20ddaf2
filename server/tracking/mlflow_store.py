"""MLflow: a run in the store that MLFLOW_TRACKING_URI names, or in ``mlruns`` of the run folder."""

import os
import time
from typing import Any

from server.tracking.tracker import TRACKERS, TrackedPoint, TrackedRun
from shared.base.extras import import_extra

EXPERIMENT = "dandelion"  # unless MLFLOW_EXPERIMENT_NAME says another
FOLDER = "mlruns"
RUN_TAG = "dandelion.run"  # our id of the run, by which it is found again
LONGEST = 6000  # characters of a parameter that MLflow takes
LAST_TAG = "dandelion.last_round"  # the last round that was logged


@TRACKERS.register("mlflow")
class MlflowStore:
    """Logs through ``mlflow``, which the extra ``mlflow`` installs (the slim package).

    Raises:
        ConfigError: ``mlflow`` is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = import_extra("mlflow", "trackers = mlflow", "mlflow")
        self._entities = import_extra("mlflow", "trackers = mlflow", "mlflow.entities")
        self._client: Any = None
        self._id = ""

    def start(self, run: TrackedRun) -> int:
        address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not address:  # files, which need no database's packages
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (run.folder / FOLDER).absolute().as_uri()
        self._client = self._mlflow.MlflowClient(tracking_uri=address)
        experiment = self._experiment()
        former = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.id}'")
        if former:
            self._id = former[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return int(former[0].data.tags.get(LAST_TAG, -1))
        tags = {RUN_TAG: run.id}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        parameters = [
            self._entities.Param(key, str(value)[:LONGEST]) for key, value in run.settings.items()
        ]
        for first in range(0, len(parameters), 100):  # as many as a server takes at once
            self._client.log_batch(self._id, params=parameters[first : first + 100])
        return -1

    def log(self, point: TrackedPoint) -> None:
        at = int(1000 * point.seconds)
        metrics = [
            self._entities.Metric(name, value, at, point.round)
            for name, value in point.values.items()
        ]
        tag = self._entities.RunTag(LAST_TAG, str(point.round))
        self._client.log_batch(self._id, metrics=metrics, tags=[tag])

    def finish(self) -> None:
        self._client.set_terminated(self._id, "FINISHED", int(1000 * time.time()))

    def _experiment(self) -> str:
        """The id of the experiment; it is created if there is none."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))
