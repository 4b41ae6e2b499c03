"""The public API: stateless, validates, writes rows, mints presigned URLs, streams events. Never proxies bytes."""
