"""The worker's settings, each read from FUSION_<NAME>."""

from typing import Literal

from fusion_core.settings import CommonSettings, Secret

Sharding = Literal["none", "fsdp2"]
_SHORTEST_SECRET = 16


class WorkerSettings(CommonSettings, frozen=True, kw_only=True):
    redis_url: Secret
    pool: str = "h100x1"
    """The pool this slot serves: a kind of machine, or `cpu` for reading datasets."""
    name: str = ""
    """How operators know this worker; the host's name if unset."""
    work_dir: str = "/var/lib/fusion"
    """Local disk for runs and cached inputs. One worker a folder."""
    device: Literal["cpu", "cuda"] = "cuda"
    """What trainers compute on."""
    num_processes: int = 1
    """Trainer processes, one a device."""
    sharding: Sharding = "none"
    """none: each trainer process holds the whole model (DDP); fsdp2: its weights, gradients and moments are spread over
    all of a slot's, two or more, and jobs with `retain` are refused. In a group the leader's counts."""
    nodes: int = 1
    """Machines that work at one job together, each with `FUSION_NUM_PROCESSES` trainers: a group, and one slot."""
    node_rank: int = 0
    """Which of the group's machines this is. 0 leads: it claims jobs and holds their leases; the others follow it,
    and need neither `FUSION_DATABASE_URL` nor `FUSION_REDIS_URL`."""
    leader_host: str = ""
    """Where the group's machines reach the one of rank 0."""
    group_host: str = "0.0.0.0"  # noqa: S104 - only a leader listens, and admits who knows the secret
    """The address that a leader listens on for its followers."""
    group_port: int = 29400
    """Where the leader's daemon listens for its followers."""
    rendezvous_port: int = 29500
    """Where the trainers of a group meet, on the leader's machine."""
    group_secret: Secret = ""
    """Shared by the machines of a group, 16 characters or more: who knows it may lend devices to jobs."""
    group_deadline_s: float = 600.0
    """A leader whose group is not whole, and a follower that finds no leader, ends with an error after this long."""
    gpu_class: str = ""
    """What customers call the GPUs of this machine (`h100`), so that a job can ask for them; of a GPU machine only."""
    threads: int = 1
    """CPU threads of each trainer process."""
    lease_ttl_s: float = 20.0
    heartbeat_s: float = 5.0
    """How often the lease is renewed; a fraction of its time to live."""
    idle_poll_s: float = 5.0
    """An idle worker looks into Postgres itself after this long, and up to twice as long."""
    isolation_limit_s: float = 600.0
    """Cut off from Postgres for longer, the trainer is stopped at a checkpoint."""
    drain_grace_s: float = 120.0
    """From SIGTERM, a cancel or a stop until the job is given back at its last committed checkpoint, come what may."""
    stall_s: float = 600.0
    """A trainer that has reported steps and then nothing for this long, or for twenty times its slowest recent step, is
    killed and its job tried again; outside of training it may be silent for twelve times as long, and longer with more
    data."""
    exit_after_jobs: int = 0
    """End after so many jobs, for pods that are made for one; 0: never."""
    exit_when_idle_s: float = 0.0
    """End after so long without a job, for machines that cost by the hour; 0: never."""
    checkpoint_every_s: float = 120.0
    """Checkpoints are due this long after the last, and at the end of each turn."""
    cache_bytes: int = 200 * 2**30
    """Cached inputs beyond this are evicted, least recently used first."""
    min_free_bytes: int = 2**30
    """With less free space no job is claimed."""
    metrics_port: int = 0
    """Where /metrics answers for Prometheus; 0: nowhere."""
    metrics_host: str = "127.0.0.1"
    """The address that /metrics listens on."""
    max_gpu_bytes_in_use: int = 2**30
    """With more of a device's memory in use, by a trainer not quite gone or by somebody else, no job is claimed."""
    trainer_command: str = ""
    """Overrides how trainers are launched; the run directory is appended."""
    trainer_user: str = ""
    """System user that trainers run as; only a worker that runs as root can. Unset: the worker's own."""

    @property
    def gpus(self) -> int:
        """How many GPUs the slot holds."""
        return self.world_size if self.device == "cuda" else 0

    @property
    def world_size(self) -> int:
        """Trainer processes of one job, on all machines of the group."""
        return self.nodes * self.num_processes

    def __post_init__(self) -> None:
        """Raises ValueError for a group that cannot form, and for a model that cannot be spread."""
        if not 0 <= self.node_rank < self.nodes:
            raise ValueError(f"FUSION_NODE_RANK: {self.node_rank} is none of FUSION_NODES {self.nodes}")
        if self.nodes > 1 and not self.leader_host:
            raise ValueError("FUSION_LEADER_HOST: a group of machines needs it")
        if self.nodes > 1 and len(self.group_secret) < _SHORTEST_SECRET:
            raise ValueError(f"FUSION_GROUP_SECRET: a group of machines needs one of {_SHORTEST_SECRET} characters")
        if self.sharding != "none" and self.world_size == 1:
            raise ValueError(
                f"FUSION_SHARDING: {self.sharding} spreads a model over trainer processes, and this slot has one; "
                "set FUSION_NUM_PROCESSES or FUSION_NODES, or none"
            )
