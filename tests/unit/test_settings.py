"""Settings come from the environment and `.env`, checked; what cannot be used is told with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpkit import start_folder
from mlpkit.errors import SettingsError
from mlpkit.settings import (
    IGNORED,
    Settings,
    boolean,
    decode_settings,
    described,
    encode_settings,
    environment_remarks,
    load_settings,
    seconds,
    size,
)


def mistakes_of(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, None)
    return str(caught.value)


def test_without_an_environment_there_are_defaults() -> None:
    settings = load_settings({}, None)

    assert settings == Settings()
    assert (settings.api_prefix, settings.train_task_num, settings.train_queue_size) == ("/", 5, 100)
    assert 1 <= settings.workers <= 4
    assert settings.cache_path == Path(start_folder, ".mlpkit/cache")


def test_values_are_read_in_their_units() -> None:
    settings = load_settings(
        {
            "ML_PLATFORM_CLIENT_API_PREFIX": "/nlp",
            "MLP_CLIENT_WORKER": " 3 ",
            "MLPKIT_CACHE_SIZE": "1.5GiB",
            "MLPKIT_SHUTDOWN_GRACE": "2m",
            "MLPKIT_CORS_ORIGINS": "http://a, http://b",
            "MLPKIT_LOG_FORMAT": "JSON",
            "MLPKIT_CACHE_DIR": "/var/cache/x",
        },
        None,
    )

    assert settings.api_prefix == "/nlp/"
    assert settings.workers == 3
    assert settings.cache_size == 3 << 29
    assert settings.shutdown_grace == 120
    assert settings.cors_origins == ("http://a", "http://b")
    assert settings.log_format == "json"
    assert settings.cache_path == Path("/var/cache/x")


@pytest.mark.parametrize(
    ("text", "expected"), [("512", 512), ("64MiB", 64 << 20), ("1.5g", 3 << 29), (" 2 kb ", 2048), ("1T", 1 << 40)]
)
def test_sizes_are_powers_of_1024(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1e9", "9" * 400, "ten", "5 XB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as"):
        size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("1.5", 1.5), ("30s", 30), ("5m", 300), ("2H", 7200), ("30d", 2_592_000)]
)
def test_times_are_seconds(text: str, expected: float) -> None:
    assert seconds(text.lower()) == expected


@pytest.mark.parametrize("text", ["", "-1", "9" * 400, "1w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a time such as"):
        seconds(text)


def test_booleans_have_the_usual_words() -> None:
    assert [boolean(each) for each in ("on", "TRUE", " yes", "1")] == [True] * 4
    assert [boolean(each) for each in ("off", "False", "no", "0")] == [False] * 4
    with pytest.raises(ValueError, match="one of on, off"):
        boolean("perhaps")


def test_every_value_that_cannot_be_used_is_told_with_what_is_allowed() -> None:
    message = mistakes_of(
        MLP_TRAIN_TASK_NUM="0",
        MLPKIT_LOG_LEVEL="loud",
        MLPKIT_MAX_BODY="much",
        ML_PLATFORM_CLIENT_API_PREFIX="nlp",
        MLPKIT_DEBUG="perhaps",
        MLPKIT_LOAD_TIMEOUT="0",
    )

    assert len(message.splitlines()) == 6
    assert "MLPKIT_LOAD_TIMEOUT is '0': it must be a time above 0" in message
    assert "MLP_TRAIN_TASK_NUM is '0': it must be a whole number of at least 1" in message
    assert "MLPKIT_LOG_LEVEL is 'loud': it must be one of trace, debug, info, warning, error" in message
    assert "ML_PLATFORM_CLIENT_API_PREFIX is 'nlp': it must be a path that starts with a slash" in message


def test_an_unknown_name_is_told_with_what_may_be_meant() -> None:
    assert mistakes_of(MLPKIT_LOG_LEVL="info") == ("Unknown setting MLPKIT_LOG_LEVL, did you mean 'MLPKIT_LOG_LEVEL'?")


def test_names_of_other_programs_and_of_the_original_are_left_alone() -> None:
    others = {"PATH": "/bin", "MLP_SOMETHING": "x", "MLPKIT_TEST_S3": "x"}

    assert load_settings(others | dict.fromkeys(IGNORED, "x"), None) == Settings()


LINKS = {
    "MLPKIT_NER_PORT": "tcp://10.0.0.7:8000",
    "MLPKIT_NER_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "MLPKIT_NER_PORT_8000_TCP_ADDR": "10.0.0.7",
    "MLPKIT_NER_PORT_8000_TCP_PORT": "8000",
    "MLPKIT_NER_PORT_8000_TCP_PROTO": "tcp",
    "MLPKIT_NER_SERVICE_HOST": "10.0.0.7",
    "MLPKIT_NER_SERVICE_PORT": "8000",
    "MLPKIT_NER_SERVICE_PORT_HTTP": "8000",
    "MLPKIT_PORT": "tcp://10.0.0.7:8000",
    "MLPKIT_SERVICE_HOST": "10.0.0.7",
    "DB_PORT": "tcp://10.0.0.9:3306",
}
"""What Kubernetes sets for Services of the names `mlpkit-ner`, `mlpkit` and `db`."""


def test_service_links_of_kubernetes_are_ignored() -> None:
    assert load_settings(LINKS, None) == Settings()
    assert environment_remarks(LINKS, None) == [
        ("DEBUG", f"{name} is a service link of Kubernetes and was ignored") for name in sorted(LINKS)
    ]


def test_a_port_that_is_no_service_link_is_still_checked() -> None:
    assert "Unknown setting MLPKIT_PORT" in mistakes_of(MLPKIT_PORT="8000")
    assert "DB_PORT is 'tcp:3306': it must be a port" in mistakes_of(DB_PORT="tcp:3306")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MLP_TRAIN_TASKS_NUM", "MLP_TRAIN_TASK_NUM"),
        ("MLP_CLIENT_WORKERS", "MLP_CLIENT_WORKER"),
        ("ML_PLATFORM_CLIENT_API_PREFX", "ML_PLATFORM_CLIENT_API_PREFIX"),
        ("MINIO_ACESS_KEY", "MINIO_ACCESS_KEY"),
    ],
)
def test_a_misspelt_name_of_the_platform_is_a_warning(name: str, meant: str) -> None:
    assert load_settings({name: "2"}, None) == Settings()
    assert environment_remarks({name: "2"}, None) == [
        ("WARNING", f"Unknown setting {name}, did you mean {meant!r}? It has no effect.")
    ]


def test_other_names_need_no_remark() -> None:
    others = {"MLP_SOMETHING": "x", "MLP_NER_SERVICE_HOST": "x", "PATH": "/bin", "MLP_TRAIN_TASK_NUM": "2"}

    assert environment_remarks(others | dict.fromkeys(IGNORED, "x"), None) == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_newline_at_the_end_of_a_secret_is_not_part_of_it(end: str) -> None:
    names = [setting.metadata["env"] for setting in described() if setting.metadata["secret"]]
    webhook = {"MLPKIT_WEBHOOK": f"http://h/{end}", "MLPKIT_WEBHOOK_SECRET": f"whsec_{'s3cr' * 8}{end}"}
    secrets = {
        **dict.fromkeys(names, f" s3cr3t {end}"),
        "MINIO_HOST": "s3:9000",
        "MLPKIT_WEBHOOK_ALLOW": "::1",
    } | webhook

    settings = load_settings(secrets, None)

    assert settings.db_password == settings.minio_secret_key == " s3cr3t "
    assert settings.token == "s3cr3t"


def test_an_empty_value_counts_as_not_set() -> None:
    environ = {each.metadata["env"]: " " for each in described()}

    assert load_settings(environ, None) == Settings()


def test_a_store_needs_its_credentials() -> None:
    assert "MINIO_ACCESS_KEY and MINIO_SECRET_KEY must be set" in mistakes_of(MINIO_HOST="s3:9000")


def test_a_secret_is_in_no_repr_and_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"MINIO_HOST": "s3:9000", "MINIO_ACCESS_KEY": "hidden-1", "MINIO_SECRET_KEY": "hidden-2"}
    settings = load_settings({**keys, "MLPKIT_TOKEN": "hidden-3"}, None)

    assert settings.token == "hidden-3"
    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings)


def test_a_tilde_is_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    database = {"MLP_CLIENT_DB_TYPE": "sqlite", "ML_CLIENT_MLP_DB_NAME": "~/p.db"}
    names = {"MLPKIT_HOME": "~/service", "MLPKIT_CACHE_DIR": "~/cache", **database}
    settings = load_settings(names, env_file=None)
    assert settings.home == tmp_path / "service"
    assert settings.cache_path == tmp_path / "cache"
    assert settings.db_name == str(tmp_path / "p.db")


def test_children_get_the_same_settings() -> None:
    settings = load_settings(
        {"MLPKIT_CACHE_DIR": "/x", "MLPKIT_TOKEN": "t", "MLPKIT_CORS_ORIGINS": "*", "MLPKIT_HOME": "/h"}, None
    )

    assert decode_settings(encode_settings(settings)) == settings


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "\ufeff# comment\n\nexport MLP_TRAIN_TASK_NUM=2\nMLPKIT_TOKEN='with # inside'\nMLP_CLIENT_WORKER = 3 # of 4\n",
        encoding="utf-8",
    )

    settings = load_settings({"MLP_CLIENT_WORKER": "4"}, file)

    assert (settings.train_task_num, settings.token, settings.workers) == (2, "with # inside", 4)


def test_a_broken_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("MLP_CLIENT_WORKER=1\nno equals sign\n")

    with pytest.raises(SettingsError, match=r"\.env, line 2: NAME=value is expected"):
        load_settings({}, file)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    for path in (tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingsError, match="cannot be read"):
            load_settings({}, path)


def test_options_of_a_command_line_change_a_copy() -> None:
    settings = Settings()

    assert settings.with_options(workers=0, debug=None) == Settings(workers=0)
    assert settings == Settings()


def test_every_setting_says_what_it_is_for() -> None:
    for each in described():
        assert each.metadata["doc"].endswith("."), each.name
        assert each.metadata["env"].isupper(), each.name
    names = [each.metadata["env"] for each in described()]
    assert len(names) == len(set(names))


def test_stores_of_callers_need_a_list_of_those_who_are_allowed() -> None:
    assert "MLPKIT_REMOTE_ALLOW" in mistakes_of(MLPKIT_REMOTE_STORAGE="on", MINIO_HOST="a", MINIO_ACCESS_KEY="b")
    assert "networks such as" in mistakes_of(MLPKIT_REMOTE_ALLOW="10.0.0.1/8")
