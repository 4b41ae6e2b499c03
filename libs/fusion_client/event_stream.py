"""A job's events over server-sent events: one unbroken sequence, whatever happens to the connection."""

import time
from collections.abc import Iterable, Iterator

import httpx
import msgspec

from fusion_client.errors import DeadlineError, UnexpectedAnswerError
from fusion_client.models import TERMINAL_STATUSES, Event
from fusion_client.transport import Transport, api_error, connection_failed, is_retryable, retry_after_s

MAX_EVENT_BYTES = 4 * 1024 * 1024
_SILENCE_S = 45.0  # the server sends a comment more often than this


def follow(transport: Transport, path: str, after: int, timeout_s: float) -> Iterator[Event]:
    """Yield every event with seq > `after`, once and in order, until one of them ends the job.

    A connection that breaks or falls silent is opened again from the last event seen. Raises ApiError for an answer
    that no repetition mends, and DeadlineError when `timeout_s` is over, whether or not the server can be reached.
    """
    deadline = time.monotonic() + timeout_s
    failures = 0
    while True:
        wait_s = 0.0
        try:
            for event in _connect(transport, path, after, deadline):
                failures = 0
                if event.seq > after:
                    after = event.seq
                    yield event
                    if event.type in TERMINAL_STATUSES:
                        return
        except _UnavailableError as error:
            wait_s = error.wait_s
        failures += 1
        wait_s = max(wait_s, transport.retries.wait_s(failures))
        if time.monotonic() + wait_s >= deadline:
            raise DeadlineError(f"the events of {path} did not end within {timeout_s:.0f} s; last seen: number {after}")
        time.sleep(wait_s)


class _UnavailableError(Exception):
    """Worth another connection."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s


def _connect(transport: Transport, path: str, after: int, deadline: float) -> Iterator[Event]:
    """The events of one connection. Raises _UnavailableError, DeadlineError or ApiError."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    silence_s = max(0.001, min(_SILENCE_S, deadline - time.monotonic()))
    timeout = httpx.Timeout(silence_s, connect=min(5.0, silence_s))
    try:
        with transport.http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if is_retryable(response):
                raise _UnavailableError(retry_after_s(response))
            if not response.is_success:
                response.read()
                raise api_error(response)
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise UnexpectedAnswerError(f"{path} did not answer with an event stream")
            yield from parse(_before(deadline, response.iter_bytes()))
    except httpx.TransportError as error:
        raise _UnavailableError from connection_failed(httpx.Request("GET", transport.http.base_url), error)


def _before(deadline: float, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Keep a stream of comments alone from outliving the caller's deadline."""
    for chunk in chunks:
        yield chunk
        if time.monotonic() >= deadline:
            return


def parse(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Turn the bytes of a stream into events; comments, other fields and events without an id are skipped.

    Splits at LF alone: JSON may hold other characters that count as line ends elsewhere. Raises UnexpectedAnswerError.
    """
    fields: dict[str, str] = {}
    for line in _lines(chunks):
        if not line:
            if "id" in fields and "data" in fields:
                yield _event(fields)
            fields = {}
            continue
        name, _, value = line.partition(":")
        if name:
            value = value.removeprefix(" ")
            fields[name] = f"{fields['data']}\n{value}" if name == "data" and "data" in fields else value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    pending = b""
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if len(pending) > MAX_EVENT_BYTES:
            raise UnexpectedAnswerError(f"an event is larger than {MAX_EVENT_BYTES} bytes")


def _event(fields: dict[str, str]) -> Event:
    try:
        data = msgspec.json.decode(fields["data"], type=dict)
        return Event(seq=int(fields["id"]), type=fields.get("event", "message"), data=data)
    except (msgspec.DecodeError, ValueError) as error:
        raise UnexpectedAnswerError(f"an event of the stream cannot be read: {error}") from error
