"""The whole of Fusion as processes, tuned to be quick, around a tiny random Llama and the real engine."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fusion_client import Fusion, JobDetail
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import connect, queries
from fusion_local.processes import base_environment, kill_tree
from fusion_local.stack import HOST, Stack, free_port
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.inputs import add_key

WORDS = ["the", "model", "grows", "new", "layers", "and", "learns", "from", "every", "row", "while", "old", "weights"]
QUICK = {
    "FUSION_LEASE_TTL_S": "6",
    "FUSION_HEARTBEAT_S": "0.5",
    "FUSION_IDLE_POLL_S": "0.5",
    "FUSION_SWEEP_S": "0.3",
    "FUSION_SWEEP_GAP_S": "4",
    "FUSION_CHECKPOINT_EVERY_S": "0.0001",
    "FUSION_DRAIN_GRACE_S": "20",
    "FUSION_LOG_FORMAT": "json",
}
HYPERPARAMS = {"turns": 2, "cycles": 2, "steps_per_cycle": 5, "batch_size": 2, "seq_len": 16, "lr": 0.01}


def texts(count: int) -> list[str]:
    return [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(24)) + f" {i}" for i in range(count)]


def make_base(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator(texts(50), trainer)
    fast: Any = PreTrainedTokenizerFast
    fast = fast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


class Platform:
    """The stores, two orchestrators, an api, workers, and a customer with a dataset."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stack = Stack(root / "stack")
        self.port = free_port()
        self.orchestrator_ports = [free_port(), free_port()]
        self._numbers = 0
        self.secret = self.base_model_id = self.dataset_id = ""
        self.base_folder = root
        self.client: Fusion

    async def open(self) -> None:
        await migrate(self.stack.database_url())
        connection = await connect(self.stack.database_url(), application_name="e2e")
        account = await queries.insert_account(connection, name="e2e")
        self.secret = await add_key(connection, account["id"])
        await connection.close()
        self.start_api()
        self.start_orchestrators()
        self.client = Fusion(f"http://{HOST}:{self.port}", self.secret)

    def _start(self, name: str, module: str, within: Sequence[str] = (), **settings: object) -> None:
        own = {f"FUSION_{key.upper()}": str(value) for key, value in settings.items()}
        env = base_environment() | self.stack.environment() | QUICK | own
        self.stack.processes.start(name, [*within, sys.executable, "-m", module], env=env)

    def start_api(self) -> None:
        self._start("api", "fusion_api", port=self.port, training_pool="training")

    def start_orchestrators(self) -> None:
        for number, port in enumerate(self.orchestrator_ports):
            self._start(f"orchestrator-{number}", "fusion_orchestrator", port=port)

    def start_worker(self, pool: str, failpoint: str = "", within: Sequence[str] = (), **changes: object) -> str:
        """A worker of this pool, started by the command `within`; answers its name. Each has its own folder."""
        self._numbers += 1
        name = f"worker-{pool}-{self._numbers}"
        settings = {"pool": pool, "work_dir": self.root / name, "device": "cpu", "failpoint": failpoint}
        self._start(name, "fusion_worker", within, **(settings | changes))
        return name

    def ensure_worker(self, name: str, pool: str) -> str:
        """The worker, or another one if a failpoint has killed it."""
        with suppress(KeyError, psutil.NoSuchProcess):
            if psutil.Process(self.stack.processes.pid(name)).status() != psutil.STATUS_ZOMBIE:
                return name
        self.stack.processes.stop(name)
        return self.start_worker(pool)

    def import_base(self, folder: Path) -> str:
        command = [str(Path(sysconfig.get_path("scripts")) / "fusion-admin"), "base-models", "import", str(folder)]
        rehearsal = self.root / "rehearsal.jsonl"
        rehearsal.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(30)))
        done = subprocess.run(
            [*command, "--rehearsal", str(rehearsal)],
            env=base_environment() | self.stack.environment(),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    def make_dataset(self) -> str:
        path = self.root / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(200)))
        dataset = self.client.create_dataset([self.client.upload(path)], "rows")
        return self.client.wait_dataset(dataset.id, timeout_s=60, poll_s=0.2).id

    def submit(self, key: str, **hyperparams: object) -> str:
        """The models of all jobs have one name, as the card that comes with a model has it too."""
        job = self.client.create_job(
            base_model_id=self.base_model_id,
            dataset_id=self.dataset_id,
            hyperparams=HYPERPARAMS | {"output_name": "grown"} | hyperparams,
            idempotency_key=key,
        )
        return job.id

    def wait(self, job_id: str, until: Callable[[JobDetail], bool], deadline_s: float = 150) -> JobDetail:
        end = time.monotonic() + deadline_s
        while True:
            job = self.client.get_job(job_id)
            if until(job):
                return job
            assert time.monotonic() < end, f"{job} after {deadline_s} s; logs in {self.root}"
            time.sleep(0.1)

    def completed(self, job_id: str, deadline_s: float = 150) -> JobDetail:
        job = self.wait(job_id, lambda job: job.finished_at is not None, deadline_s)
        assert job.status == "completed", job.error
        return job

    def exported(self, job: JobDetail) -> dict[str, str]:
        """SHA-256 of every file of the model that a job made."""
        assert job.output_model_id is not None
        return {file.rel: str(file.sha256) for file in self.client.download_manifest(job.output_model_id).files}

    async def ledger(self, job_id: str) -> list[int]:
        connection = await connect(self.stack.database_url(), application_name="e2e")
        rows = await connection.fetch("select amount_microusd from ledger where job_id = $1", job_id)
        await connection.close()
        return [row["amount_microusd"] for row in rows]

    async def event_sequence(self, job_id: str) -> list[int]:
        connection = await connect(self.stack.database_url(), application_name="e2e")
        rows = await connection.fetch("select seq from job_events where job_id = $1 order by seq", job_id)
        await connection.close()
        return [row["seq"] for row in rows]

    def trainers(self) -> list[psutil.Process]:
        """Processes that name a run directory of any of our workers."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if process.pid != os.getpid() and any(
                str(self.root) in part and "/runs/" in part for part in process.info["cmdline"] or ()
            ):
                found.append(process)
        return found

    def close(self) -> None:
        if self.secret:
            self.client.close()
        self.stack.stop()
        for stray in self.trainers():
            kill_tree(stray.pid)


@pytest.fixture(scope="package")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Started from the main thread: children die with the thread that started them."""
    platform = Platform(tmp_path_factory.mktemp("platform"))
    try:
        platform.stack.start()
        yield platform
    finally:
        platform.close()


@pytest.fixture(scope="package")
async def platform(stores: Platform) -> Platform:
    await stores.open()
    stores.start_worker("cpu")
    stores.base_folder = make_base(stores.root / "tiny-llama")
    stores.base_model_id = stores.import_base(stores.base_folder)
    stores.dataset_id = stores.make_dataset()
    return stores
