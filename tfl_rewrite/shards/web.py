"""Parts from a web server, over http or https, with the standard library.

Who writes a manifest does not choose where this program connects to: a server may redirect to http and
https only, never down from https, and to no private address, checked on the very address of the connection.
Nor how long it is kept waiting: there are a least rate, and a limit on the whole. A limit on the silence
between two bytes does not do: a server that sends a byte a second is never silent. What counts is how long
somebody waited, not how long parts took to be unpacked and written. All connections of a source are counted
together, for they share a line.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tfl_rewrite.errors import FileAccessError, UsageError

ANSWER_SECONDS = 30.0
"""From a request until its answer begins, redirects included."""
LEAST_RATE = 1000
"""Bytes a second."""
RATE_SECONDS = 15.0
"""Of waiting, over which the rate is taken."""
LONGEST_SECONDS = 6 * 3600.0
"""For all that comes from one source."""
_LOOK_SECONDS = 0.2
_LONGEST_LOOK = 1.0


class TooSlow(FileAccessError):
    """A source does not send what it has in bearable time; asking again does not help."""


class Request:
    """One request: its connections are shut down when it takes too long, whatever it is doing then.

    Attributes:
        reason: Why it was ended, or None.
    """

    def __init__(self, deadline: float) -> None:
        self.reason: str | None = None
        self._deadline: float | None = deadline
        self._sockets: list[socket.socket] = []

    def watch(self, connection: socket.socket) -> None:
        """Takes a connection; a copy of it, since encryption takes the original over."""
        self._sockets.append(connection.dup())

    def answered(self) -> None:
        """From now on the rate counts."""
        self._deadline = None

    def is_late(self, now: float) -> bool:
        """Whether its answer should have begun."""
        return self._deadline is not None and now > self._deadline

    def end(self, reason: str) -> None:
        """Shuts its connections down: who waits for them gets no more."""
        self.reason = self.reason or reason
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the copies back."""
        while self._sockets:
            self._sockets.pop().close()


class Pace:
    """Looks at all requests to one source."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: set[Request] = set()
        self._began: float | None = None
        self._waiting = 0
        self._waited = 0.0
        self._nbytes = 0
        self._looking = False

    def begin(self) -> Request:
        """Begins a request; `finish` must follow."""
        now = time.monotonic()
        request = Request(now + ANSWER_SECONDS)
        with self._lock:
            self._began = now if self._began is None else self._began
            self._requests.add(request)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, daemon=True).start()
        return request

    def finish(self, request: Request) -> None:
        """Ends a request, in whatever way."""
        with self._lock:
            self._requests.discard(request)
            request.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody waits for bytes."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def arrived(self, nbytes: int) -> None:
        """Counts bytes."""
        with self._lock:
            self._nbytes += nbytes

    def _look(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                if not self._requests:
                    self._looking = False
                    return
                if self._waiting:
                    # A machine that slept waited for nobody.
                    self._waited += min(now - before, _LONGEST_LOOK)
                reason = self._reason(now)
                for request in self._requests:
                    if reason is not None:
                        request.end(reason)
                    elif request.is_late(now):
                        request.end(f"gave no answer within {ANSWER_SECONDS:g} s")
            before = now

    def _reason(self, now: float) -> str | None:
        if self._began is not None and now - self._began > LONGEST_SECONDS:
            return f"took more than {LONGEST_SECONDS:g} s"
        if self._waited < RATE_SECONDS:
            return None
        rate = self._nbytes / self._waited
        self._waited, self._nbytes = 0.0, 0
        return f"sends less than {LEAST_RATE} bytes a second" if rate < LEAST_RATE else None


TIMEOUT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
_MOST_ADDRESSES = 8
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))


class WebSource:
    """A folder of a web server."""

    remote = True

    def __init__(self, parts: urllib.parse.SplitResult, folder: str, *, allow_private: bool) -> None:
        self._parts = parts
        self._folder = folder
        self._opener = _opener(allow_private)
        self._pace = Pace()

    @classmethod
    def at(cls, url: str, *, allow_private: bool) -> tuple[WebSource, str]:
        """Returns the folder of a manifest's URL and the manifest's name.

        Raises:
            UsageError: The URL has no host or no file name, or a user name in it.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"is not a URL: {error}", file=url) from None
        folder, _, name = parts.path.rpartition("/")
        if not host or not name or any(char.isspace() or ord(char) < 33 for char in url):
            raise UsageError("names no file of a host", file=url, remedy="give the manifest's URL")
        if parts.username is not None:
            raise UsageError("has a user name in it", file=f"{parts.scheme}://...@{host}{parts.path}")
        return cls(parts, folder, allow_private=allow_private), urllib.parse.unquote(name)

    @contextlib.contextmanager
    def open(self, name: str) -> Any:
        """Asks for a file; tries again where that may help."""
        # The query stays: it may be what grants access to the whole folder.
        path = f"{self._folder}/{urllib.parse.quote(name)}"
        url = urllib.parse.urlunsplit(self._parts._replace(path=path, fragment=""))
        response = self._ask(url, f"{self._parts.scheme}://{self._parts.netloc}{path}")
        with response:
            yield response

    def _ask(self, url: str, label: str) -> _Response:
        # What is stored is what was hashed: nothing may be packed on the way.
        headers = {"Accept-Encoding": "identity", "User-Agent": "tfl-rewrite"}
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                request = urllib.request.Request(url, headers=headers)
                return self._answer(request, label)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise FileAccessError("is missing", file=label) from None
                if last or error.code not in _TRANSIENT:
                    raise FileAccessError(
                        f"the server answers {error.code} {_reason(error.reason)}".rstrip(), file=label
                    ) from None
            except Refused as error:
                raise FileAccessError(str(error), file=label, remedy=error.remedy) from None
            except TooSlow:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                if isinstance(reason, Refused):
                    raise FileAccessError(str(reason), file=label, remedy=reason.remedy) from None
                if last or isinstance(error, ValueError):
                    raise FileAccessError(f"cannot be fetched: {_reason(reason)}", file=label) from error
            time.sleep(_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("unreachable")

    def _answer(self, request: urllib.request.Request, label: str) -> _Response:
        watched = self._pace.begin()
        token = _WATCHED.set(watched)
        try:
            response = self._opener.open(request, timeout=TIMEOUT_SECONDS)
            watched.answered()
            return _Response(response, label, self._pace, watched)
        except BaseException as error:
            self._pace.finish(watched)
            if watched.reason is not None:
                raise TooSlow(f"the server {watched.reason}", file=label) from error
            raise
        finally:
            _WATCHED.reset(token)


_WATCHED: ContextVar[Request | None] = ContextVar("_WATCHED", default=None)
"""The request for which this thread connects."""


class Refused(OSError):
    """A connection that must not be made."""

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.remedy = remedy


class _Response:
    def __init__(self, response: Any, label: str, pace: Pace, watched: Request) -> None:
        self._response = response
        self._label = label
        self._pace = pace
        self._watched = watched
        self._left: int | None = response.length
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("", "identity"):
            response.close()
            raise FileAccessError(f"the server packs it ({encoding}) although asked not to", file=label)

    def __enter__(self) -> _Response:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._pace.finish(self._watched)

    def read(self, size: int, /) -> bytes:
        """Returns what has arrived, at most ``size`` bytes; none at the end."""
        size = size if self._left is None else min(size, self._left)
        if not size:
            return b""
        try:
            with self._pace.waiting():
                data = bytes(self._response.read1(size))
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(_reason(error)) from error
        if not data and (self._left or self._watched.reason):
            raise self._broken(f"{self._left} bytes are missing")
        self._pace.arrived(len(data))
        if self._left is not None:
            self._left -= len(data)
        return data

    def _broken(self, why: str) -> FileAccessError:
        if self._watched.reason is not None:
            return TooSlow(f"the server {self._watched.reason}", file=self._label)
        return FileAccessError(f"the connection broke: {why}", file=self._label)


def _reason(error: object) -> str:
    """Says in words what went wrong; what a server sent may hold ends of lines."""
    if isinstance(error, http.client.BadStatusLine):
        return "the server does not speak HTTP"
    if isinstance(error, http.client.IncompleteRead):
        return "the rest is missing"
    text = error.strerror if isinstance(error, OSError) else None
    return " ".join((text or str(error) or type(error).__name__).split())


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme.lower()
        if scheme not in ("http", "https"):
            raise Refused(f"the server redirects to {scheme or 'no'} URL, which is not followed")
        if req.type == "https" and scheme == "http":
            raise Refused("the server redirects from https to http, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connect(
    address: tuple[str, int], timeout: Any = None, source_address: Any = None, *, anywhere: bool
) -> Any:
    """As ``socket.create_connection``, to public addresses only unless it may go anywhere.

    Every address of the host is looked at, and the connection is made to one that was: a name that resolves
    to another address the second time gains nothing.
    """
    host, port = address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for row in found:
        if not anywhere and not is_public(str(row[4][0])):
            raise Refused(
                f"{host} is at the private address {row[4][0]}", "use --allow-private if that is meant"
            )
    failure: OSError = OSError(f"{host} has no address")
    watched = _WATCHED.get()
    for family, kind, protocol, _, target in found[:_MOST_ADDRESSES]:
        connection = socket.socket(family, kind, protocol)
        try:
            if watched is not None and watched.reason is not None:
                raise OSError(watched.reason)
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(target)
            connection.settimeout(TIMEOUT_SECONDS if timeout is None else timeout)
            if watched is not None:
                watched.watch(connection)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet can reach."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if inner is not None:
        found = inner
    elif isinstance(found, ipaddress.IPv6Address) and found in _NAT64:
        found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    elif isinstance(found, ipaddress.IPv6Address) and found not in _GLOBAL_UNICAST:
        return False
    return found.is_global and not found.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All that was ever handed out (RFC 4291 2.5.4); what lies beside it is local, or embeds an IPv4 address.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https, to public addresses only unless it may go anywhere."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    def http_open(self, req: urllib.request.Request) -> Any:
        return self._open(http.client.HTTPConnection, req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self._open(http.client.HTTPSConnection, req)

    def _open(self, kind: type[http.client.HTTPConnection], req: urllib.request.Request) -> Any:
        anywhere = self._allow_private or _proxied(req)

        def connection(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            made = kind(*arguments, **options)
            # Where http.client keeps what connects its socket, since Python 3.4.
            made._create_connection = functools.partial(_connect, anywhere=anywhere)  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, req)


def _proxied(request: urllib.request.Request) -> bool:
    """Whether the connection is to a proxy, which the user chose; only its target's literal is checked."""
    tunnel = getattr(request, "_tunnel_host", None)
    if not tunnel and not request.has_proxy():
        return False
    host = urllib.parse.urlsplit(request.full_url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        private = host == "localhost" or host.endswith(".localhost")
    else:
        private = not is_public(host)
    if private:
        raise Refused(f"{host} is a private address", "use --allow-private if that is meant")
    return True


def _opener(allow_private: bool) -> urllib.request.OpenerDirector:
    """Only what is needed: the usual opener would also follow file and ftp URLs."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Handler(allow_private),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener
