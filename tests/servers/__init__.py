"""Real servers for the tests, on loopback and free ports."""

from tests.servers.ports import LONG, SOON, closed_port, free_port, stretched, until, wait_until
from tests.servers.refusing import refusing
from tests.servers.relay import Relay
from tests.servers.s3 import S3Server, Unavailable, proxy_of, s3_server

__all__ = [
    "LONG",
    "SOON",
    "Relay",
    "S3Server",
    "Unavailable",
    "closed_port",
    "free_port",
    "proxy_of",
    "refusing",
    "s3_server",
    "stretched",
    "until",
    "wait_until",
]
