"""Who may ask a server, and by what name; and what all its answers have in common: errors are JSON, and counted."""

from __future__ import annotations

import asyncio
import hmac
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog
from attrs import field, frozen
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from ftcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .serve_limits import ServerMetrics

PUBLIC = frozenset({"/", "/health"})
"""What needs no token: a page without facts, and whether the server is there."""

_LEAST_LETTERS = 16


@frozen
class Access:
    """Who may ask.

    Attributes:
        hosts: names of the server that ``Host`` may say; None for any.
        any_address: whether it may say any address instead: a page that another name led here (DNS rebinding) has none.
        token: that ``Authorization: Bearer`` must give; None for everyone.
    """

    hosts: frozenset[str] | None = None
    any_address: bool = False
    token: str | None = field(default=None, repr=False)

    def is_known_host(self, value: str) -> bool:
        """Whether a request that is for this host is for this server."""
        if self.hosts is None:
            return True
        name = value[1:].partition("]")[0] if value.startswith("[") else value.partition(":")[0]
        return name.lower().rstrip(".") in self.hosts or (self.any_address and _is_address(name))

    def is_authorised(self, headers: Headers) -> bool:
        """Whether the token is right, if one is needed; takes as long for a wrong one, wherever it differs."""
        if self.token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())


def access_to(host: str, names: Iterable[str] = (), token_file: Path | None = None) -> Access:
    """Return who may ask a server that is bound to a host.

    Args:
        host: a name or an address; ``0.0.0.0`` and ``::`` mean all of this machine.
        names: more names that it has, in front of it or in DNS.
        token_file: with the token.

    Raises:
        UserError: there is no fit token in the file.
    """
    token = None if token_file is None else read_token(token_file)
    is_any = host in {"", "0.0.0.0", "::"}
    own = {socket.gethostname(), socket.getfqdn(), "localhost"} if is_any else {host}
    local = {"localhost", "127.0.0.1", "::1"} if is_loopback(host) else set()
    return Access(frozenset(name.lower() for name in {*own, *local, *names}), is_any, token)


def read_token(file: Path) -> str:
    """Read a token: one line of at least 16 letters.

    Raises:
        UserError: there is none.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            token = stream.read(4097).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the token in {file}: {error}") from None
    if not (_LEAST_LETTERS <= len(token) <= 4096 and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            f"{file} contains no token: expected one line of {_LEAST_LETTERS} to 4096 ASCII characters without "
            f"spaces, as "
            f'python -c "import secrets; print(secrets.token_urlsafe())" > {file} writes it'
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Guard:
    """Middleware: lets in who may ask, makes of all that goes wrong an answer in JSON, and counts it.

    Args:
        app: what answers.
        access: who may ask.
        numbers: counts.
    """

    def __init__(self, app: ASGIApp, access: Access, numbers: ServerMetrics) -> None:
        self.app, self.access, self.numbers = app, access, numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let `app` answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun: list[int] = []

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message["status"])
                if message["status"] >= 400:
                    self.numbers.requests.labels(message["status"]).inc()
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, receive, counted)
        except BaseException as error:
            answer = self.explain(error, ascii(scope["path"][:200]))  # a log shows no escape sequences of strangers
            if answer and not begun:
                await refusal(answer)(scope, receive, counted)
            if not isinstance(error, Exception):
                raise

    def explain(self, error: BaseException, path: str) -> HTTPException | None:
        """Return what is answered where something went wrong, after saying in one line what is not the client's."""
        log = structlog.get_logger()
        if isinstance(error, HTTPException):
            return error
        if isinstance(error, ClientDisconnect):
            self.numbers.requests.labels(499).inc()  # as nginx counts it
            log.info("a client disconnected before the response", path=path)
            return None
        if isinstance(error, asyncio.CancelledError):
            log.warning("a request was unanswered at server shutdown", path=path)
            return HTTPException(503, "the server is shutting down")
        log.error("a request failed", path=path, error=f"{type(error).__name__}: {str(error)!a}")
        return HTTPException(500, "internal error; see the server's log")

    def check(self, scope: Scope) -> None:
        """Refuse what is for another server, of strangers, or of two lengths.

        Raises:
            HTTPException: 400, 401 or 421.
        """
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            why = "both Transfer-Encoding and Content-Length, or in HTTP/1.0: the length of the request is ambiguous"
            raise HTTPException(400, why, {"Connection": "close"})
        if not self.access.is_known_host(headers.get("host", "localhost")):
            raise HTTPException(421, f"the host name is not accepted: {headers['host']!r}; allow it with --allow-host")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in PUBLIC and not self.access.is_authorised(headers):
            raise HTTPException(
                401, "this needs the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )


def refusal(error: HTTPException) -> JSONResponse:
    """Return what is answered where something went wrong."""
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
