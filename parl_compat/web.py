"""PARL's log server and monitor: web pages for the user who runs the cluster, and for nobody else.

Their answers name machines, paths and what actors print. They listen on loopback, give what lies in
the folders of actors, and answer neither other users of this machine nor pages of other sites. Their
pages load nothing from elsewhere, and a browser is told so.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

import flask
import flask_cors

from parl_compat.shim import web_host

_ACTOR = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")  # a name such as 127.0.0.1_40123_1700000000
_ESTABLISHED = "01"  # of the state column of /proc/net/tcp


# PARL's page of jobs loads Bootstrap's scripts from a server far away, to open a job's log
_FAR_SCRIPT = re.compile(r'<script src="https?://[^"]*"></script>')
OPEN_LOG = """<script>
  $(document).on("click", "[data-toggle=modal]", function (event) {
    event.preventDefault();
    const opened = $.Event("show.bs.modal", { relatedTarget: this });
    $($(this).data("target")).trigger(opened).addClass("show").show();
  });
  $(document).on("click", "[data-dismiss=modal]", function () {
    $(this).closest(".modal").trigger("hide.bs.modal").removeClass("show").hide();
  });
</script>"""

_BELOW_BAR = "<style>body { padding-top: 60px; }</style>"  # the bar hid a page's heading


def _refuse() -> None:
    """Answer no request but the user's own."""
    request = flask.request
    if not _ACTOR.fullmatch(request.args.get("job_id", "_")):
        flask.abort(400, "job_id is not an actor's name")
    # a site whose name is made to mean this address can make a browser ask
    if urlsplit(f"http://{request.host}").hostname not in (web_host(), "localhost"):
        flask.abort(403, "not a name of this server")
    if _user_behind(request.environ["werkzeug.socket"]) not in (os.getuid(), 0):
        flask.abort(403, "the cluster of another user")


def _user_behind(connection: socket.socket) -> int | None:
    """The user whose process has the other end of an IPv4 connection within this machine.

    Both addresses and the state must agree. The kernel gives a closed connection to root, and a
    client can have the port of a closed connection to another server.
    """
    ends = [connection.getpeername(), connection.getsockname()]
    wanted = [
        f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
        for host, port in ends
    ]
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[1:4] == [*wanted, _ESTABLISHED]:
                return int(fields[7])
    return None


def _let_own_pages_read(response: flask.Response) -> flask.Response:
    """Let the monitor's page, which is at another port, show an actor's log."""
    origin = flask.request.headers.get("Origin", "")
    if urlsplit(origin).hostname in (web_host(), "localhost"):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
    return response


def _stay_here(response: flask.Response) -> flask.Response:
    """Keep the browser that shows a page on this machine."""
    if response.mimetype == "text/html":
        page = _FAR_SCRIPT.sub(OPEN_LOG, response.get_data(as_text=True))
        response.set_data(page.replace("</head>", f"{_BELOW_BAR}</head>"))
        logs = f"http://{web_host()}:* http://localhost:*"
        response.headers["Content-Security-Policy"] = (
            f"default-src 'self' 'unsafe-inline' data:; connect-src 'self' {logs};"
            " frame-ancestors 'none'"
        )
    return response


def mend() -> None:
    """Put these rules into every Flask server of this process."""
    run = flask.Flask.run

    def run_there(self: flask.Flask, host: str | None = None, *args: Any, **options: Any) -> None:
        self.before_request(_refuse)
        self.after_request(_let_own_pages_read)
        self.after_request(_stay_here)
        run(self, web_host(), *args, **options)

    flask.Flask.run = run_there  # pyright: ignore
    flask_cors.CORS = lambda app: None  # PARL lets the pages of every site read the logs
