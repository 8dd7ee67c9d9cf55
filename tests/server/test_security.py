"""Hosts, origins, keys, types of bodies: what a web page of another origin cannot do."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest
from lariat import LLM
from lariat.server.routes import ENDPOINTS

from tests.support.servers import NAME, Running, running

BODY = {"prompt": "a", "max_tokens": 1}
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def locked(llm: LLM) -> Iterator[Running]:
    with running(llm, api_keys=("one-key", "another")) as server:
        yield server


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "a@localhost", "[::1"]
)
def test_a_name_that_points_here_is_refused(server: Running, host: str) -> None:
    for path in ("/v1/models", "/health", "/metrics"):
        answer = server.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "Host" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8", "10.1.2.3"])
def test_names_of_this_machine_and_addresses_are_taken(server: Running, host: str) -> None:
    assert server.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_page_of_another_origin_can_do_nothing(server: Running) -> None:
    pages = [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": f"{server.url}.evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ]
    for headers in pages:
        for path in ("/v1/models", "/metrics", "/health", "/openapi.json"):
            assert server.get(path, headers=headers).status_code == 403, (headers, path)
        assert server.post("/v1/completions", BODY, headers=headers).status_code == 403
    # A browser asks before it sends JSON elsewhere, and gets no leave.
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    import httpx

    answer = httpx.options(f"{server.url}/v1/completions", headers=asked)
    assert answer.status_code >= 400
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_its_own_origin_may_use_the_server(server: Running) -> None:
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.post("/v1/completions", BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_only_json_is_taken(server: Running, media_type: str) -> None:
    """The other types are those that a page may send without asking."""
    import httpx

    answer = httpx.post(
        f"{server.url}/v1/completions", content=b'{"prompt": "a"}',
        headers={"Content-Type": media_type},
    )  # fmt: skip
    assert answer.status_code == 415


def test_an_origin_that_is_listed(llm: LLM) -> None:
    page = "https://chat.example"
    with running(llm, cors_origins=(page,)) as server:
        answer = server.get("/v1/models", headers={"Origin": page, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        answer = server.get("/v1/models", headers={"Origin": EVIL})
        assert answer.status_code == 403
        assert answer.headers.get("access-control-allow-origin") != EVIL


def test_every_route_but_health_and_files_needs_a_key(locked: Running) -> None:
    for endpoint in ENDPOINTS:
        is_file = endpoint.path == "/" or endpoint.path.endswith((".js", ".css", ".svg"))
        path = endpoint.path.replace("{model:path}", NAME)
        status = httpx.request(endpoint.method, locked.url + path, json={}).status_code
        assert status == (200 if is_file or path == "/health" else 401), path
        if endpoint.method == "GET":
            headers = {"Authorization": "Bearer another"}
            missing = "{id}" in path or path == "/v1/documents"  # no such context, no library
            assert locked.get(path, headers=headers).status_code == (404 if missing else 200)
    assert locked.get("/openapi.json").status_code == 401
    assert locked.get("/nothing").status_code == 401


@pytest.mark.parametrize("key", ["-", "one", "one-key2", "ONE-KEY", "one-key another"])
def test_other_keys_do_not_count(locked: Running, key: str) -> None:
    answer = locked.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert locked.get("/v1/models", headers={"x-api-key": key}).status_code == 401


def test_clients_send_keys_in_their_own_ways(locked: Running) -> None:
    good = openai.OpenAI(base_url=locked.base_url, api_key="one-key", max_retries=0)
    assert [model.id for model in good.models.list()] == [NAME]
    bad = openai.OpenAI(base_url=locked.base_url, api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        bad.models.list()
    other = anthropic.Anthropic(base_url=locked.url, api_key="another", max_retries=0)
    assert other.get("/v1/models", cast_to=object)


def test_no_prompt_stands_in_metrics(server: Running) -> None:
    secret = "Rumpelstiltskin"
    server.post("/v1/completions", BODY | {"prompt": secret})
    server.post("/v1/completions", BODY | {"prompt": secret, "user": secret, secret: 1})
    server.get(f"/{secret}")
    server.get(f"/v1/models/{secret}")
    text = server.get("/metrics").text
    assert "lariat_num_requests_running" in text
    assert secret not in text


def test_no_prompt_stands_in_the_log(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "Rumpelstiltskin"
    with running(llm, log_requests=True) as server:
        server.post("/v1/completions", BODY | {"prompt": secret})
        server.get(f"/v1/models/{secret}?{secret}")
        server.get(f"/{secret}")
    lines = capfd.readouterr().err.splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "lariat: POST /v1/completions 200",
        "lariat: GET /v1/models/{model:path} 404",
        "lariat: GET none 404",
    ]
