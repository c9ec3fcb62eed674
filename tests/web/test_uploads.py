"""Files are put into the data bucket, checked before if asked, within limits, and only if that is allowed."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit import Client
from mlpkit.errors import ArgumentError, BodyTooLarge, DataError, UploadsOff
from tests.servers import LONG, wait_until
from tests.wire.replayer import Service

ROWS = "".join(f"a {word} day\t{label}\t1\n" for word in "abcdefgh" for label in ("good", "bad"))
BROKEN = "only one column\n" * 3
LIMIT = 200_000


@pytest.fixture(scope="module")
def taking() -> Iterator[Service]:
    """A service that takes uploads of at most 200 kB."""
    service = Service(
        "default",
        command=("-m", "mlpkit", "run", "tests.servers.mood:app"),
        MLP_CLIENT_WORKER="1",
        MLPKIT_UPLOAD="on",
        MLPKIT_UPLOAD_SIZE=str(LIMIT),
    )
    yield service
    service.stop()


@pytest.fixture
def client(taking: Service) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{taking.port}") as found:
        yield found


def stored(service: Service, key: str) -> Path:
    return Path(service.folder.name) / "home" / "storage" / "ml-platform-data" / key


def left_over(service: Service) -> list[Path]:
    return list((Path(service.folder.name) / "home" / "uploads").glob("*"))


def written(folder: Path, text: str) -> Path:
    file = folder / "rows.tsv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_is_stored_and_can_be_trained_on(taking: Service, client: Client, tmp_path: Path) -> None:
    done = client.upload(written(tmp_path, ROWS), "of me/天气.tsv", algorithm="mood")

    assert (done.location, done.size) == ("of me/天气.tsv", len(ROWS))
    assert done.report is not None
    assert done.report["rows"] == 16
    assert stored(taking, done.location).read_text() == ROWS
    assert left_over(taking) == []
    assert client.train("mood", done.location).wait(LONG).status == "completed"
    wait_until(lambda: " audit | upload key of?me/天气.tsv by 127.0.0.1: success" in taking.log(), "it is audited")


def test_a_file_that_no_training_could_use_is_refused_with_the_report(
    taking: Service, client: Client, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"broken\.tsv, line 1"):
        client.upload(written(tmp_path, BROKEN), "broken.tsv", algorithm="mood")
    answer = client.request("PUT", "/data/broken.tsv?algorithm=mood", BROKEN.encode())
    report = json.loads(answer.body)["report"]
    assert (report["name"], report["fatal"], report["errors"] >= 3) == ("broken.tsv", True, True)
    assert not stored(taking, "broken.tsv").exists()
    assert left_over(taking) == []


def test_a_file_without_a_check_is_stored_as_it_is(taking: Service, client: Client, tmp_path: Path) -> None:
    done = client.upload(written(tmp_path, BROKEN))

    assert (done.location, done.report) == ("rows.tsv", None)
    assert stored(taking, "rows.tsv").read_text() == BROKEN


def test_a_file_that_is_too_large_is_refused(taking: Service, client: Client, tmp_path: Path) -> None:
    with pytest.raises(BodyTooLarge, match="MLPKIT_UPLOAD_SIZE"):
        client.upload(written(tmp_path, "x" * (LIMIT + 1)), "large.tsv")
    # Without its length it is only seen while it comes.
    connection = http.client.HTTPConnection("127.0.0.1", taking.port, timeout=LONG)
    pieces = [b"x" * 50_000] * 5
    connection.request("PUT", "/data/large.tsv", iter(pieces), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert not stored(taking, "large.tsv").exists()
    wait_until(lambda: left_over(taking) == [], "the file is removed")


@pytest.mark.parametrize("key", ["../outside", "a//b", "a/%2e/b", "a%5Cb", "a%00b", "%2e%2e/x", ""])
def test_a_key_that_leads_out_of_the_bucket_is_refused(taking: Service, client: Client, key: str) -> None:
    answer = client.request("PUT", f"/data/{key}", b"x")

    assert json.loads(answer.body)["status"] != "success"
    assert not (Path(taking.folder.name) / "home" / "storage" / "outside").exists()


def test_an_algorithm_that_is_not_there_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="nope"):
        client.upload(written(tmp_path, ROWS), algorithm="nope")


def test_a_caller_who_goes_away_leaves_nothing(taking: Service) -> None:
    with socket.create_connection(("127.0.0.1", taking.port), timeout=LONG) as connection:
        connection.sendall(b"PUT /data/half.tsv HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        wait_until(lambda: bool(left_over(taking)), "the upload has begun")
    wait_until(lambda: left_over(taking) == [], "the file is removed")
    assert not stored(taking, "half.tsv").exists()


def test_a_caller_who_goes_away_during_the_check_leaves_nothing(taking: Service) -> None:
    head = f"PUT /data/left.tsv?algorithm=mood HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ROWS)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", taking.port), timeout=LONG) as connection:
        connection.sendall(f"{head}{ROWS}".encode())
        wait_until(lambda: [file.stat().st_size for file in left_over(taking)] == [len(ROWS)], "it has arrived")
    wait_until(lambda: left_over(taking) == [], "the file is removed")
    assert not stored(taking, "left.tsv").exists()


def test_a_service_takes_no_files_unless_it_is_told_to(plain: Service, tmp_path: Path) -> None:
    with Client(f"http://127.0.0.1:{plain.port}") as client, pytest.raises(UploadsOff, match="MLPKIT_UPLOAD=on"):
        client.upload(written(tmp_path, ROWS))
