"""The API's settings, each read from FUSION_<NAME>."""

from fusion_core.settings import CommonSettings, Secret
from fusion_core.webhook_targets import TargetPolicy
from fusion_core.webhooks import check_key


class ApiSettings(CommonSettings, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8000
    """Where the API, its documents, /health and /ready answer."""
    training_pool: str = "h100x1"
    """The pool that trains, fine-tunes, contracts and samples."""
    sample_rows: int = 0
    """Sequences sampled from each new base for rehearsal; 0 leaves it to every job to sample a few for itself."""
    ingest_pool: str = "cpu"
    """The pool that reads datasets."""
    job_deadline_h: float = 336.0
    """A job that has not ended so many hours after its creation fails; time in which it was stopped does not count."""
    max_body_bytes: int = 2**20
    """Larger request bodies are refused; data goes to presigned URLs."""
    client_deadline_s: float = 20.0
    """How long a client may take to send a request's head, its body, and to take what is answered."""
    answer_deadline_s: float = 10.0
    """An answer that has not begun by then is 503 `not_ready`; the time that a client takes to send does not count."""
    upload_expires_s: int = 3600
    """How long a presigned PUT is good for."""
    max_open_uploads: int = 1000
    """Uploads of one account that have not become a dataset."""
    storage_quota_bytes: int = 2**40
    """Bytes of datasets and announced uploads that one account may keep."""
    download_expires_s: int = 900
    """How long a presigned GET is good for."""
    redis_url: Secret | None = None
    """Where replicas count requests together; each for itself if unset."""
    requests_per_minute: int = 1200
    """What one API key may send."""
    max_connections: int = 20
    """Connections to Postgres that one process holds at most."""
    metrics_port: int = 0
    """Where /metrics answers for Prometheus; 0: nowhere."""
    metrics_host: str = "127.0.0.1"
    """The address that /metrics listens on; let no customer reach it."""
    webhook_key: Secret | None = None
    webhook_allow_http: bool = False
    webhook_allow_private: str = ""

    def __post_init__(self) -> None:
        check_key(self.webhook_key)
        self.webhook_policy()

    def webhook_policy(self) -> TargetPolicy:
        """Where webhooks may go. Raises ValueError."""
        return TargetPolicy.of(allow_http=self.webhook_allow_http, allow_private=self.webhook_allow_private)
