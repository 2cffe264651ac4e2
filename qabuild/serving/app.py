"""The ASGI application: paths, statuses, and the checks that every request passes."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.serving import open_inference, openapi, protocol
from qabuild.serving.batching import QueueFull
from qabuild.serving.metrics import Metrics
from qabuild.serving.refusal import Refusal
from qabuild.serving.service import Served, Service
from qabuild.serving.settings import Settings
from qabuild.system.version import VERSION

T = TypeVar("T")

BODY_SECONDS = 30.0
"""Until the body of a request must be complete."""
LAST_SECONDS = 5.0
"""The same, once the server stops."""
UNREAD_SECONDS = 2.0
"""Of reading a body that is refused: a client that still sends would not see the response."""
CLOSE = {"Connection": "close"}
CLIENT_GONE = 499
"""The status that is counted where no client waits for it."""
OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"})
"""Paths that need no token: probes send none, and the API is no secret."""


def make(service: Service, settings: Settings, metrics: Metrics) -> Starlette:
    """The application that answers from the models of the service."""
    paths = _Paths(service, settings, metrics)
    routes = [
        Route("/answer", paths.answer, methods=["POST"]),
        Route("/healthz", paths.alive),
        Route("/readyz", paths.ready),
        Route("/metrics", paths.metrics),
        Route("/openapi.json", paths.openapi),
        Route("/docs", paths.docs),
        Route("/v2", paths.server),
        Route("/v2/health/live", paths.live),
        Route("/v2/health/ready", paths.ready_v2),
        Route("/v2/models/{name}", paths.model),
        Route("/v2/models/{name}/ready", paths.model_ready),
        Route("/v2/models/{name}/infer", paths.infer, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(_Counted, metrics=metrics, paths={route.endpoint: route.path for route in routes}),
            Middleware(_Authorised, token=settings.token),
        ],
        exception_handlers={
            Refusal: _refused,
            HTTPException: _not_routed,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Paths:
    """What each path does."""

    def __init__(self, service: Service, settings: Settings, metrics: Metrics) -> None:
        self._service, self._settings, self._metrics = service, settings, metrics

    async def answer(self, request: Request) -> Response:
        asked = protocol.read(await self._body(request), self._settings.max_characters)
        served = self._service.served(asked.model)
        results = await self._results(request, served, asked.pairs, served.model.parameters(asked.parameters))
        return JSONResponse({"results": results} if asked.is_list else results[0])

    async def infer(self, request: Request) -> Response:
        served = self._service.served(request.path_params["name"])
        asked = open_inference.read(await self._body(request), self._settings.max_characters)
        results = await self._results(request, served, asked.pairs, served.model.parameters(asked.parameters))
        model = {"model_name": served.name, "model_version": served.model.digest}
        return JSONResponse(open_inference.response(asked, results, model))

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(self, request: Request) -> Response:
        if reason := self._service.unready:
            return _error(503, reason, {"Retry-After": "1"})
        return JSONResponse({"ready": True, "changed_on_disk": self._service.changed()})

    async def metrics(self, request: Request) -> Response:
        content, media_type = self._metrics.exposition(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self._settings))

    async def docs(self, request: Request) -> Response:
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(openapi.page(self._settings), media_type="text/html", headers=policy)

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": "qabuild", "version": VERSION, "extensions": []})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready_v2(self, request: Request) -> Response:
        return JSONResponse({"ready": self._service.unready is None}, 503 if self._service.unready else 200)

    async def model(self, request: Request) -> Response:
        served = self._service.served(request.path_params["name"])
        return JSONResponse(open_inference.metadata(served.name, served.model.digest, served.model.backend))

    async def model_ready(self, request: Request) -> Response:
        return JSONResponse({"name": self._service.served(request.path_params["name"]).name, "ready": True})

    async def _body(self, request: Request) -> bytes:
        """The body. Raises Refusal where it is too long or takes too long."""
        body, chunks = bytearray(), request.stream()
        is_too_long = int(request.headers.get("content-length", 0)) > self._settings.max_body
        try:
            async with self._service.timeout(BODY_SECONDS, LAST_SECONDS):
                while not is_too_long and (chunk := await anext(chunks, None)) is not None:
                    body += chunk
                    is_too_long = len(body) > self._settings.max_body
        except TimeoutError:
            raise Refusal(408, "the body was not complete in time", CLOSE) from None
        if is_too_long:
            with suppress(TimeoutError):
                async with self._service.timeout(UNREAD_SECONDS, UNREAD_SECONDS):
                    async for _ in chunks:
                        pass
            raise Refusal(413, f"the body is too long: this server takes {self._settings.max_body} bytes", CLOSE)
        return bytes(body)

    async def _results(
        self, request: Request, served: Served, pairs: Sequence[Pair], parameters: Parameters
    ) -> list[Any]:
        """The results of the pairs. Raises Refusal, and ClientDisconnect if the client does not wait for them."""
        if len(pairs) > self._settings.max_queue:
            most = self._settings.max_queue
            raise Refusal(413, f"{len(pairs)} questions in one request; this server takes {most}")
        try:
            return await _while_connected(request, served.batcher.submit(pairs, parameters))
        except QueueFull:
            raise Refusal(429, "too many questions wait: ask again later", {"Retry-After": "1"}) from None
        except (Refusal, ClientDisconnect):
            raise
        except Exception as error:
            self._service.report(served, error)
            raise Refusal(500, "the model cannot answer this; the server's log says why") from None


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection."""
    working = asyncio.ensure_future(work)
    disconnecting = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        disconnecting.cancel()
        working.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Counted:
    """Middleware that counts and times requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Mapping[Any, str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.monotonic()
        try:
            await self._app(scope, receive, noted)
        finally:
            path = self._paths.get(scope.get("endpoint"), "other")
            self._metrics.add_request(path, status, time.monotonic() - started)


class _Authorised:
    """Middleware that refuses requests without the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._token is not None and scope["path"] not in OPEN:
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                message = "this server needs a token: Authorization: Bearer ..."
                await _error(401, message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _error(status: int, message: str, headers: Any = None) -> Response:
    """A response of one line. ASCII: a message may quote text that has no encoding."""
    return Response(json.dumps({"error": message}), status, headers, "application/json")


def _handler(respond: Callable[[Any], Response]) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        return respond(error)

    return handle


_refused = _handler(lambda refusal: _error(refusal.status, refusal.message, refusal.headers))
_not_routed = _handler(
    lambda error: _error(error.status_code, f"{error.detail}; GET /docs describes this server", error.headers)
)
_gone = _handler(lambda error: Response(status_code=CLIENT_GONE))
_failed = _handler(lambda error: _error(500, "this is a bug in qabuild; the server's log says more"))
