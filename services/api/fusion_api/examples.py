"""Examples of answers for the OpenAPI document. A test compares each with the schema of its operation."""

from typing import Any

JOB: dict[str, Any] = {
    "id": "bcc91e6d-0cc1-411d-96a3-bc1eb203f9cb",
    "type": "train",
    "status": "queued",
    "retries": 0,
    "last_checkpoint_step": 0,
    "output_model_id": None,
    "created_at": "2026-06-04T02:30:00Z",
    "started_at": None,
    "finished_at": None,
}
JOBS = [
    JOB
    | {
        "base_model_id": "42c01c10-3a5e-4c1f-9d1b-5f0c2b7d9e11",
        "source_model_id": None,
        "dataset_id": "0198b3a2-6f00-7000-8000-000000000002",
        "labels": {"team": "support"},
        "description": None,
    }
]
EVENTS = [{"seq": 1, "type": "queued", "created_at": "2026-06-04T02:30:00Z", "data": {}}]
METRICS = {
    "job_id": JOB["id"],
    "count": 1,
    "latest_step": 1200,
    "points": [
        {
            "ts": "2026-06-04T02:41:07Z",
            "step": 1200,
            "cycle": 2,
            "phase": "train",
            "loss": 2.41,
            "lr": 1e-4,
            "throughput": 8.5,
            "tokens_per_s": 2176.0,
            "grad_norm": 0.83,
            "vram_gb": 21.4,
        }
    ],
}
RESULT = {
    "cost_usd": 30.716,
    "gpu_minutes": 24.5,
    "tokens": 3_072_000,
    "params_before": 1_500_000_000,
    "params_after": 2_360_000_000,
    "perplexity_before": 17.0,
    "perplexity_after": 11.0,
    "perplexity": {"base": 17.0, "turn_1": 13.1, "turn_2": 11.0},
    "function_preservation": 0.0,
}
BASE_MODELS = [
    {
        "id": "42c01c10-3a5e-4c1f-9d1b-5f0c2b7d9e11",
        "family": "falcon",
        "name": "falcon-h1-1.5b",
        "version": "bf16",
        "params": 1_550_000_000,
        "precision": "bf16",
    }
]
MODELS = [
    {
        "id": "0198b3a2-6f00-7000-8000-000000000004",
        "name": "falcon-h1-x2-chassis",
        "version": "v1",
        "params": 2_360_000_000,
        "base_model_id": BASE_MODELS[0]["id"],
        "lineage": {"job_id": JOB["id"], "parent_model_id": None},
        "status": "ready",
        "created_at": "2026-06-04T03:10:12Z",
    }
]
DOWNLOAD = {
    "model_id": MODELS[0]["id"],
    "name": "falcon-h1-x2-chassis",
    "version": "v1",
    "files": [
        {
            "rel": "config.json",
            "size": 1024,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "url": "https://storage.example.com/models/config.json?X-Amz-Signature=0f",
        }
    ],
    "expires_at": "2026-06-04T03:25:12Z",
}
DATASETS = [
    {
        "id": "0198b3a2-6f00-7000-8000-000000000002",
        "name": "wikitext-x2-chassis",
        "version": "v1",
        "shard_count": 8,
        "bytes": 2_400_000_000,
        "rows": 1_801_350,
        "skipped_rows": 0,
        "status": "ready",
        "created_at": "2026-06-04T02:14:36Z",
        "error": None,
    }
]
PRESIGNED = {
    "upload_id": "0198b3a2-6f00-7000-8000-000000000003",
    "key": "tmp/0198b3a2-6f00-7000-8000-000000000003/train.jsonl",
    "url": "https://storage.example.com/tmp/train.jsonl?X-Amz-Signature=0f",
    "method": "PUT",
}
ESTIMATE = {
    "total_usd": 557.6,
    "unit": "1M-tokens",
    "qty": 1.28,
    "line_items": [
        {"label": "training", "qty": 1_280_000, "unit": "1M-tokens", "rate": 45.0, "amount": 57.6},
        {"label": "growth", "qty": 20_000_000_000, "unit": "params", "rate": 25.0, "amount": 500.0},
    ],
}
KEYS = [
    {
        "id": "0198b3a2-6f00-7000-8000-000000000005",
        "name": "ci",
        "prefix": "fusion_live_Ab3d",
        "scopes": ["read", "train"],
        "last_used_at": None,
        "revoked": False,
        "created_at": "2026-06-04T02:14:36Z",
    }
]
CREATED_KEY = {
    "id": KEYS[0]["id"],
    "prefix": "fusion_live_Ab3d",
    "scopes": ["read", "train"],
    "secret": "fusion_live_Ab3d...",
}
OVERVIEW = {
    "active_runs": 1,
    "models": 2,
    "datasets": 3,
    "gpu_minutes_period": 24.5,
    "tokens_period": 3_072_000,
    "spend_usd_period": 30.716,
    "period_days": 30,
}
USAGE = {
    "period_days": 14,
    "unit": "day",
    "total_gpu_minutes": 24.5,
    "total_tokens": 3_072_000,
    "total_cost_usd": 30.716,
    "total_jobs": 1,
    "buckets": [{"date": "2026-06-04", "gpu_minutes": 24.5, "tokens": 3_072_000, "cost_usd": 30.716, "jobs": 1}],
}
