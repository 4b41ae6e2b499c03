"""The application: its operations, its errors, its document."""

from importlib.metadata import version
from typing import Any

from fusion_http.body_errors import check_request
from fusion_http.problem_details import HANDLERS
from litestar import Litestar, Router
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import ScalarRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from fusion_api import (
    account,
    base_models,
    dataset_contents,
    dataset_report,
    datasets,
    estimates,
    health,
    job_control,
    job_events,
    job_reports,
    jobs,
    keys,
    models,
    multipart,
    pricing,
    recommend,
    uploads,
    webhook_deliveries,
    webhooks,
)
from fusion_api.auth import provide_caller
from fusion_api.idempotency import provide_once
from fusion_api.metrics import Metrics
from fusion_api.openapi_document import DocumentPlugin, get_document
from fusion_api.services import open_services, provide_services
from fusion_api.settings import ApiSettings

OPERATIONS: list[Any] = [
    jobs.create_job,
    jobs.list_jobs,
    jobs.get_job,
    job_control.cancel_job,
    job_control.stop_job,
    job_control.resume_job,
    job_control.list_checkpoints,
    job_reports.get_metrics,
    job_reports.get_result,
    job_events.get_events,
    base_models.list_base_models,
    base_models.get_base_model,
    models.list_models,
    models.get_model,
    models.get_lineage,
    models.change_model,
    models.delete_model,
    models.download_model,
    datasets.list_datasets,
    datasets.get_dataset,
    datasets.create_dataset,
    datasets.delete_dataset,
    dataset_contents.preview_dataset,
    dataset_report.get_dataset_report,
    dataset_contents.count_tokens,
    uploads.presign_upload,
    multipart.begin_multipart,
    multipart.get_upload,
    multipart.sign_parts,
    multipart.complete_upload,
    multipart.abort_upload,
    pricing.get_prices,
    estimates.estimate_price,
    recommend.recommend,
    keys.list_keys,
    keys.create_key,
    keys.revoke_key,
    webhooks.list_webhooks,
    webhooks.create_webhook,
    webhooks.get_webhook,
    webhooks.change_webhook,
    webhooks.delete_webhook,
    webhooks.rotate_secret,
    webhook_deliveries.send_test,
    webhook_deliveries.list_deliveries,
    webhook_deliveries.get_delivery,
    webhook_deliveries.replay_delivery,
    account.get_account,
    account.change_account,
    account.get_overview,
    account.get_usage,
    account.list_ledger,
]


def create_app(settings: ApiSettings) -> Litestar:
    """The API under /api, liveness and readiness beside it."""

    def set_state(config: AppConfig) -> AppConfig:
        config.state.settings = settings
        config.state.metrics = Metrics()
        return config

    return Litestar(
        route_handlers=[
            Router("/api", route_handlers=[*OPERATIONS, get_document]),
            health.health,
            health.ready,
            health.ready_without_files,
        ],
        dependencies={
            "services": Provide(provide_services),
            "caller": Provide(provide_caller),
            "once": Provide(provide_once),
        },
        before_request=check_request,
        exception_handlers=HANDLERS,
        lifespan=[open_services],
        on_app_init=[set_state],
        logging_config=None,  # its default would take the root logger away from fusion_core.logs
        request_max_body_size=settings.max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="Fusion",
            version=version("fusion"),
            path="/api/docs",
            render_plugins=[ScalarRenderPlugin(path="/"), DocumentPlugin(path="/openapi.json")],
            components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"key": []}],
        ),
    )
