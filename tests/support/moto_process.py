"""An S3 endpoint as a process: moto behind one lock.

`python -m tests.support.moto_process [ADDRESS]`, loopback where none is given.

moto looks whether a key exists and creates it later, in many threads, so two conditional writes of
one key could both succeed. S3 promises that they do not, and fencing rests upon it. The
lock is taken once the whole request has been read: a client that stops half-way stops nobody else.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


class Serialised:
    """A WSGI application that answers one request at a time."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        size = environ.get("CONTENT_LENGTH") or 0
        body = environ["wsgi.input"].read(int(size)) if int(size) else b""
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            return [b"".join(self._application(environ, start_response))]


class QuietHandler(MotoRequestHandler):
    """Connections stay open between requests, as those of S3 do, and requests are not logged."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    """Print the port once it listens, and serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    application = Serialised(DomainDispatcherApplication(create_backend_app))
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    server = make_server(address, 0, application, threaded=True, request_handler=QuietHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
