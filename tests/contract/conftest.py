"""The contract is replayed against the same application and stores as the integration tests of the API."""

from tests.integration.api.conftest import (
    application,
    base_model_id,
    customer,
    http,
    new_customer,
    pool,
    problem,
)

__all__ = ["application", "base_model_id", "customer", "http", "new_customer", "pool", "problem"]
