"""The orchestrator: rings the doorbell, reclaims expired leases, prunes storage; and the operator's command."""
