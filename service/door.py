"""Before any route: a service without keys answers to its own names, and changes for no web page.

A browser on this machine reaches loopback for every page that it shows. A page can make its own
name point to 127.0.0.1 (then `Host` is that name) and can send what a form could send (then
`Origin` is the page's); it can fake neither header. Where keys are needed no page has one.
"""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import Refusal
from service.errors import StrangeHost, StrangeOrigin
from service.problems import answer
from service.settings import Settings

_OPEN = ("/livez", "/readyz", "/metrics")
"""For whoever watches the service, by whatever name; they tell nothing and change nothing."""
_READING = ("GET", "HEAD", "OPTIONS")


class Door:
    """ASGI: refuses strange names, and pages of other sites that would change something."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "http" and self.settings.keyless and scope["path"] not in _OPEN:
            refusal = refused(scope["method"], Headers(scope=scope), self.settings)
            if refusal is not None:
                await answer(Request(scope), refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def refused(method: str, headers: Headers, settings: Settings) -> Refusal | None:
    """Why a keyless service does not take a request with these headers; None if it does."""
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    own = {*settings.server.allowed_hosts, settings.server.host}
    if name.lower() not in {n.lower() for n in own}:
        return StrangeHost(name)
    origin = headers.get("origin")
    if origin is None or method in _READING or origin in settings.server.allowed_origins:
        return None
    # Its own page, /docs, is the host that was called; another port is another program's.
    same = origin.partition("://")[2].lower() == host.lower()
    return None if same else StrangeOrigin(origin)
