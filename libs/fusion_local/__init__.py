"""Fusion on one machine: real Postgres, Valkey and an S3 gateway from wheels, and the services as processes."""
