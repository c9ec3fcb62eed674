"""nginx from the machine's packages (`apt-get install nginx`): a load balancer on loopback, round robin."""

from __future__ import annotations

import getpass
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.servers.ports import LONG, accepts, free_port, wait_until
from tests.servers.s3 import Unavailable

_CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream replicas {{
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port}{tls};
        client_max_body_size 0;
        location / {{
            proxy_set_header Host $http_host;
            proxy_pass http://replicas;
            proxy_next_upstream error;
            proxy_connect_timeout 2s;
        }}
    }}
}}
"""


class Nginx:
    """A load balancer in front of services on 127.0.0.1; requests go to them in turn.

    With `certificate`, a file that has a key too, it speaks TLS.

    Raises:
        Unavailable: nginx is not installed.
    """

    def __init__(self, folder: Path, ports: Sequence[int], certificate: Path | None = None) -> None:
        program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            raise Unavailable("nginx is not installed (apt-get install nginx)")
        self.port = free_port()
        lines = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
        self._tls = "" if certificate is None else f" ssl; {lines.removesuffix(';')}"
        self._folder, self._file = folder, folder / "nginx.conf"
        folder.mkdir(parents=True)
        self._write(ports)
        self._process = subprocess.Popen(
            [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(self._file)],
            stdin=subprocess.DEVNULL,
        )
        wait_until(lambda: accepts(self.port) or self._process.poll() is not None, "nginx listens")

    def use(self, ports: Sequence[int]) -> None:
        """Sends new requests to these only; returns when the requests to others have ended."""
        before = psutil.Process(self._process.pid).children()
        self._write(ports)
        self._process.send_signal(signal.SIGHUP)
        _, alive = psutil.wait_procs(before, timeout=20)
        assert not alive, "nginx still sends requests as before"

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(LONG)

    def _write(self, ports: Sequence[int]) -> None:
        servers = "\n        ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports)
        user = f"user {getpass.getuser()};" if getpass.getuser() == "root" else ""
        self._file.write_text(
            _CONFIGURATION.format(folder=self._folder, port=self.port, tls=self._tls, servers=servers, user=user),
            encoding="utf-8",
        )
