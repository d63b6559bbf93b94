"""The run folder and what happens in it: configuration, checkpoints, metrics, signals, reports."""
