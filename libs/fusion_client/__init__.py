"""Typed Python client of Fusion's public API, and the `fusion` command.

with Fusion.from_environment() as client:
    upload_id = client.upload(Path("train.jsonl"))
    dataset = client.wait_dataset(client.create_dataset([upload_id]).id)
    job = client.create_job(base_model_id=..., dataset_id=dataset.id, hyperparams={"turns": 2})
    for event in client.events(job.id):
        print(event.type, event.data)
    client.download_model(client.get_job(job.id).output_model_id, Path("my-model"))
"""

from fusion_client.client import Fusion
from fusion_client.errors import (
    ApiError,
    AuthenticationError,
    ChecksumError,
    ConfigurationError,
    ConflictError,
    ConnectionFailedError,
    DatasetFailedError,
    DeadlineError,
    FusionError,
    InvalidIdError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    TransferError,
    UnexpectedAnswerError,
    UnsafePathError,
)
from fusion_client.models import (
    BaseModel,
    Checkpoint,
    Compute,
    Dataset,
    DatasetError,
    DatasetReport,
    DownloadManifest,
    Estimate,
    Event,
    Failure,
    Job,
    JobDetail,
    JobProgress,
    JobResult,
    Key,
    LineItem,
    ManifestFile,
    Metrics,
    MetricsPoint,
    Model,
    NewKey,
    PresignedUpload,
    QueuePlace,
    Waiting,
)
from fusion_client.transport import Retries
from fusion_client.webhooks import Delivery, NewWebhook, Webhook

__all__ = [
    "ApiError",
    "AuthenticationError",
    "BaseModel",
    "Checkpoint",
    "ChecksumError",
    "Compute",
    "ConfigurationError",
    "ConflictError",
    "ConnectionFailedError",
    "Dataset",
    "DatasetError",
    "DatasetFailedError",
    "DatasetReport",
    "DeadlineError",
    "Delivery",
    "DownloadManifest",
    "Estimate",
    "Event",
    "Failure",
    "Fusion",
    "FusionError",
    "InvalidIdError",
    "InvalidRequestError",
    "Job",
    "JobDetail",
    "JobProgress",
    "JobResult",
    "Key",
    "LineItem",
    "ManifestFile",
    "Metrics",
    "MetricsPoint",
    "Model",
    "NewKey",
    "NewWebhook",
    "NotFoundError",
    "PresignedUpload",
    "QueuePlace",
    "RateLimitedError",
    "Retries",
    "ServerError",
    "TransferError",
    "UnexpectedAnswerError",
    "UnsafePathError",
    "Waiting",
    "Webhook",
]
