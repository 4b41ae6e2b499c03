"""Webhook delivery: `dispatch` finds what is due, `tasks` takes it from Redis, `deliver` sends it, `target` guards."""
