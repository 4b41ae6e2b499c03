"""The worker daemon: one per slot. Claims a job, keeps its lease, runs the trainer, uploads what it produces."""
