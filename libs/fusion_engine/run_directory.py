"""The folders that a trainer makes in its run directory; the files shared with the worker are in trainer_protocol."""

TOKENS_FOLDER = "tokens"  # packed rows
POOL_FOLDER = "pool"  # text sampled from the base
GROWN_FOLDER = "grown"  # the grown model before training
CONTRACTED_FOLDER = "contracted"  # the contracted model before healing
CHECKPOINTS_FOLDER = "checkpoints"
EXPORT_FOLDER = "export"
