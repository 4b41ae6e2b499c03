"""The admin endpoints as an application of their own: another port and other credentials than metrics and customers."""

from importlib.metadata import version
from typing import Any

from fusion_http.body_errors import check_request
from fusion_http.problem_details import HANDLERS
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from fusion_orchestrator.admin import (
    audit,
    dispatch_actions,
    job_actions,
    jobs,
    machines,
    overview,
    store_actions,
    stores,
)
from fusion_orchestrator.admin.auth import provide_caller, viewer
from fusion_orchestrator.service import Service

MAX_BODY_BYTES = 64 * 1024
OPERATIONS: list[Any] = [
    overview.get_overview,
    jobs.list_jobs,
    jobs.get_job,
    machines.list_leases,
    machines.list_workers,
    machines.list_queues,
    stores.list_webhooks,
    stores.get_storage,
    audit.list_audit,
    job_actions.requeue_job,
    job_actions.reclaim_job,
    job_actions.fail_job,
    job_actions.change_priority,
    job_actions.change_deadline,
    dispatch_actions.drain_worker,
    dispatch_actions.undrain_worker,
    dispatch_actions.cordon_pool,
    dispatch_actions.uncordon_pool,
    dispatch_actions.pause_dispatch,
    dispatch_actions.resume_dispatch,
    store_actions.replay_webhooks,
    store_actions.prune,
]


async def provide_service(state: State) -> Service:
    service: Service = state.service
    return service


def create_admin_app(service: Service) -> Litestar:
    """Everything below /admin, the document too, asks for an operator token."""
    return Litestar(
        route_handlers=[Router("/admin", route_handlers=OPERATIONS)],
        dependencies={"service": Provide(provide_service), "caller": Provide(provide_caller)},
        before_request=check_request,
        exception_handlers=HANDLERS,
        state=State({"service": service}),
        logging_config=None,
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=OpenAPIConfig(
            title="Fusion: admin",
            version=version("fusion"),
            openapi_router=Router("/admin", route_handlers=[], guards=[viewer]),
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
        ),
    )
