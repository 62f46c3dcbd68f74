"""A small web server for one page: reads only, on this machine only unless told otherwise."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import socketserver
import sys
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from hescribe.errors import InputError
from hescribe.report.viewer.scene import Scene

logger = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
_PAGE = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = {f"/{p.name}": p for p in sorted(_PAGE.iterdir()) if p.suffix in _KINDS}  #: all that is ever read by name
_BYTES = "application/octet-stream"
_GENE = re.compile(r"/genes/(\d{1,9})")
_PICTURE = re.compile(r"/slide/(\d{1,2})/(\d{1,7})/(\d{1,7})")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # the next prediction may be served at the same address
}


class Reply(NamedTuple):
    """What is sent; ``length`` is needed beforehand, since pieces may still have to be read."""

    kind: str
    length: int
    pieces: Iterable[bytes]


class ViewerServer(ThreadingHTTPServer):
    """Serves one scene; listens once made.

    Parameters
    ----------
    scene
        What is shown.
    host, port
        Where to listen; port 0 takes any that is free.

    Raises
    ------
    InputError
        The port is in use, or one cannot listen there.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port

    def __init__(self, scene: Scene, host: str, port: int) -> None:
        self.scene = scene
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"cannot listen on {host}:{port} ({reason})", path="--port", fix="choose another, or 0 for a free one"
            ) from error
        self.names = {"localhost", LOCAL, "::1", host.lower()}
        self.open = host in {"0.0.0.0", "::", ""}  # noqa: S104 - only where the user asks for it
        if self.open:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def server_bind(self) -> None:
        """Without the base's search for this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = LOCAL if self.open else self.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def knows(self, host: str) -> bool:
        """Whether a request's ``Host`` is meant for this server.

        A page of somebody else's whose name was made to point here would carry its own name; an address cannot be
        made to point elsewhere.
        """
        name = re.sub(r":\d+$", "", host.strip().lower()).strip("[]")
        return name in self.names or (self.open and _is_address(name))

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            logger.warning(f"a request failed: {type(error).__name__}: {error}")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hescribe", ""
    timeout = 60  # of a connection on which nothing comes

    def parse_request(self) -> bool:
        """Refuse before anything is looked at."""
        if not super().parse_request():
            return False
        if self.command != "GET":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
            return False
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return False
        return True

    def do_GET(self) -> None:
        """Send what is asked for."""
        try:
            reply = self._find(self.path.partition("?")[0])
        except InputError as error:  # the slide is damaged there
            logger.warning(f"warning: {error}")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        if reply is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self._begin(HTTPStatus.OK, reply.kind, reply.length)
        for piece in reply.pieces:
            self.wfile.write(piece)

    def _find(self, path: str) -> Reply | None:
        scene = self.server.scene
        file = _FILES.get("/viewer.html" if path == "/" else path)
        if file is not None:
            return _whole(_KINDS[file.suffix], file.read_bytes())
        if path == "/facts":
            return _whole("application/json", scene.facts)
        if path.removeprefix("/tiles/") in scene.arrays and path.startswith("/tiles/"):
            return _whole(_BYTES, scene.arrays[path.removeprefix("/tiles/")])
        if (found := _GENE.fullmatch(path)) and int(found[1]) < len(scene.stored.var):
            return Reply(_BYTES, 4 * len(scene.stored.obs), scene.gene(int(found[1])))
        if (found := _PICTURE.fullmatch(path)) and scene.pyramid is not None:
            picture = scene.pyramid.picture(*(int(number) for number in found.groups()))
            return _whole("image/jpeg", picture) if picture is not None else None
        return None

    def _begin(self, status: HTTPStatus, kind: str, length: int) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **_HEADERS}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _refuse(self, status: HTTPStatus) -> None:
        """Nothing of the request is repeated; what it may carry further is not read."""
        self.close_connection = True
        text = f"{status.value} {status.phrase}\n".encode()
        self._begin(status, "text/plain; charset=utf-8", len(text))
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """To the log, for those who debug."""
        logger.debug(format % args)


def _whole(kind: str, content: bytes) -> Reply:
    return Reply(kind, len(content), (content,))
