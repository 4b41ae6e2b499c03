"""Traces over OTLP where FUSION_OTLP_ENDPOINT is set. Where it is not, nothing is imported and every span is nothing.

From a customer's request to the last webhook is one trace: the job's row keeps the request's `traceparent` (W3C Trace
Context), and whoever works on the job goes on from it. A collector that is slow or away costs spans and nothing else:
they wait in a bounded queue, are sent by a thread of their own under a deadline, and are dropped beyond that.
"""

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from fusion_core.settings import CommonSettings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

QUEUE_LENGTH = 2048
EXPORT_EVERY_MS = 1000
EXPORT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 3.0
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Kind = Literal["internal", "server", "client", "consumer"]
Attributes = Mapping[str, str | int | float | bool]
NO_ATTRIBUTES: Attributes = {}


class _State:
    """What `configure` made; a process has one."""

    tracer: "Tracer | None" = None
    processor: "BatchSpanProcessor | None" = None


class Span:
    """One span, or nothing."""

    def __init__(self, span: "OtelSpan | None" = None) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """For a header or a row, so that others go on from here."""
        if self._span is None:
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def set(self, attributes: Attributes) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, reason: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        if self._span is not None:
            self._span.end()


def configure(service: str, settings: CommonSettings) -> None:
    """Call once at the start of a process. Raises SettingsError where the packages are missing."""
    if settings.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError([f"FUSION_OTLP_ENDPOINT needs the packages of fusion[tracing]: {error}"]) from error
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    processor = BatchSpanProcessor(exporter, max_queue_size=QUEUE_LENGTH, schedule_delay_millis=EXPORT_EVERY_MS)
    provider = TracerProvider(resource=Resource.create({"service.name": f"fusion-{service}"}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    _State.tracer, _State.processor = provider.get_tracer("fusion"), processor


def close() -> None:
    """Send what waits, for a few seconds at most, and trace no more."""
    processor, _State.tracer, _State.processor = _State.processor, None, None
    if processor is not None:
        sending = threading.Thread(target=processor.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_TIMEOUT_S)


@contextlib.contextmanager
def span(
    name: str, attributes: Attributes = NO_ATTRIBUTES, *, parent: str | None = None, kind: Kind = "internal"
) -> Iterator[Span]:
    """A span around a block and, while it lasts, the parent of every span begun within.

    Without a `parent` (a traceparent; one that cannot be read counts as none) it goes on from the span around it.
    """
    if _State.tracer is None:
        yield Span()
        return
    from opentelemetry.trace import use_span

    opened = start(name, attributes, parent=parent, kind=kind)
    assert opened._span is not None
    # What an exception says may be a customer's or a secret: its name is enough here, the log has the rest.
    with use_span(opened._span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield opened
        except BaseException as error:
            opened.fail(type(error).__name__)
            raise


def start(
    name: str,
    attributes: Attributes = NO_ATTRIBUTES,
    *,
    parent: str | None = None,
    kind: Kind = "internal",
    since: datetime | None = None,
) -> Span:
    """A span that the caller ends; `since` is when it began, if not now."""
    if _State.tracer is None:
        return Span()
    from opentelemetry.trace import SpanKind

    opened = _State.tracer.start_span(
        name,
        context=_context_of(parent),
        kind=SpanKind[kind.upper()],
        attributes=attributes,
        start_time=None if since is None else int(since.timestamp() * 1e9),
    )
    return Span(opened)


def current_traceparent() -> str | None:
    """Of the span around the caller; None where nothing is traced."""
    if _State.tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    around = get_current_span()
    return Span(around).traceparent if around.get_span_context().is_valid else None


def _context_of(traceparent: str | None) -> "Context | None":
    """None means the span around the caller."""
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
