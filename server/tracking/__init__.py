"""Trackers: TensorBoard, Weights & Biases, MLflow or a plug-in's get every round of a run."""
