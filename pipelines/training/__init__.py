"""Training of both stages: the loop, the run's folder, checkpoints, optimizers, and processes."""
