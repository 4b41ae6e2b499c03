"""The trainer: grows a model, trains the new capacity, exports safetensors. Knows no service, database or socket."""
