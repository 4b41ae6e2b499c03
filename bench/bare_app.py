"""What bench/api.py compares with: Litestar handlers that do nothing, served as the API is.

uvicorn --app-dir bench bare_app:app
"""

from typing import Any

from litestar import Litestar, get, post

ANSWER = {"id": "bcc91e6d-0cc1-411d-96a3-bc1eb203f9cb", "type": "train", "status": "queued", "retries": 0}


@get("/bare", sync_to_thread=False)
def read() -> dict[str, Any]:
    return ANSWER


@post("/bare", sync_to_thread=False)
def write(data: dict[str, Any]) -> dict[str, Any]:
    return ANSWER | {"name": str(data.get("type"))}


app = Litestar([read, write], openapi_config=None, logging_config=None)
