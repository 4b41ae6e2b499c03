"""The orchestrator's settings; docs/settings.md lists them all."""

from fusion_core.settings import CommonSettings, Secret
from fusion_core.webhook_targets import TargetPolicy
from fusion_core.webhooks import check_key


class RetentionSettings(CommonSettings, frozen=True, kw_only=True):
    """What is kept and for how long; `fusion-admin` needs no more than this."""

    keep_checkpoints: int = 3
    """A job that may go on keeps this many of its newest checkpoints, and each turn's end."""
    superseded_checkpoint_h: int = 1
    """The others go when they are this old."""
    ended_checkpoint_days: int = 30
    """All checkpoints of a job go this long after it has ended."""
    history_days: int = 365
    """Events and metrics of a job go this long after it has ended."""
    deleted_model_days: int = 7
    """The files of a deleted model are kept this long, and it can be restored."""


class OrchestratorSettings(RetentionSettings, frozen=True, kw_only=True):
    """Read once from `FUSION_*`. Times are in seconds."""

    redis_url: Secret
    """redis:// or rediss://, with the password in it if there is one."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8001
    """Where /health, /ready and /metrics answer."""
    admin_host: str = "127.0.0.1"
    """The address that the admin endpoints listen on: of the network of the people on call, not of customers."""
    admin_port: int = 8002
    """Where the admin endpoints answer; 0: any free port, which the log names."""
    lease_ttl_s: float = 20.0
    """How long a lease lives without a heartbeat; workers and orchestrators must have the same."""
    sweep_s: float = 2.0
    """How often expired leases and unrung jobs are looked for."""
    sweep_gap_s: float = 10.0
    """Sweeps missing for this long mean an outage: workers then get a whole lease to renew before a reclaim."""
    worker_gone_s: float = 60.0
    """A worker that holds no lease and has not reported for this long is gone, until it reports again."""
    ring_again_s: float = 10.0
    """A job nobody claimed is rung for again after this."""
    ring_depth: int = 32
    """At most this many rings wait in a pool's queue."""
    prune_every_s: float = 3600.0
    """How often storage is pruned."""
    prune_min_age_s: float = 86_400.0
    """Objects that no row names are kept this long."""
    retention_every_s: float = 3600.0
    """How often what is older than its period is taken away."""
    webhook_key: Secret | None = None
    """Webhook secrets are derived from it; apis and orchestrators must have the same. Unset: webhooks are off."""
    webhook_allow_http: bool = False
    """Take webhook URLs that begin with http://, too; apis and orchestrators must have the same."""
    webhook_allow_private: str = ""
    """Hosts, addresses and CIDR networks, separated by commas, that webhooks may go to although they are not public;
    apis and orchestrators must have the same."""
    webhook_concurrency: int = 32
    """At most this many webhooks are sent at once by one replica."""
    mark_pods: str = ""
    """A label selector: on Kubernetes, pods that it finds are marked against disruption while their worker holds a job.
    Unset: none are."""
    mark_every_s: float = 10.0
    """How often those marks are looked at."""
    kubernetes_api: str = "https://kubernetes.default.svc"
    """Where the API server of Kubernetes answers."""
    kubernetes_credentials: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """A folder with `token`, `ca.crt` and `namespace`, as a pod is given it."""
    shutdown_s: float = 10.0
    """SIGTERM to exit, at most."""

    def __post_init__(self) -> None:
        check_key(self.webhook_key)
        self.webhook_policy()

    def webhook_policy(self) -> TargetPolicy:
        """Raises ValueError."""
        return TargetPolicy.of(allow_http=self.webhook_allow_http, allow_private=self.webhook_allow_private)
