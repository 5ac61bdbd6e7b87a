"""The page in headless Chromium, with two replicas behind one port, and the doors that it opens."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import uvicorn
from fastapi import FastAPI
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from dfmvr.avatar.build import pose_head
from dfmvr.avatar.gltf import encode_glb
from dfmvr.predictor import NOT_REFINED
from dfmvr.types import VIEW_NAMES
from serve import page_files
from serve.api import build_api
from serve.engine import Engine, Face
from serve.page import mount_page
from serve.settings import ServeSettings
from tests.serve.conftest import Fields, endpoint_of, png, problem

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE_S = 120
"""On a busy machine; a free one takes a second a step."""
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
WIDTH = "return [document.documentElement.scrollWidth, window.innerWidth]"
COLOURS = 300
"""Of a head's picture at least; a blank canvas has one."""

Replica = tuple[FastAPI, ASGIApp, Any]


def build_replica(engine: Engine) -> Replica:
    """An endpoint with its page, as a process of its own builds it."""
    from gradio.context import Context

    Context.id = 0  # counts the parts of all pages of a process; a replica has one page
    settings = ServeSettings(keys="none", time_limit_s=PATIENCE_S, avatar_time_limit_s=PATIENCE_S)
    endpoint = endpoint_of(settings, engine)
    app, guarded = build_api(endpoint, None)
    mount_page(app, endpoint)
    return app, guarded, endpoint


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    """Where two replicas answer in turns."""
    replicas = [build_replica(engine) for _ in range(2)]
    turns = itertools.cycle([guarded for _, guarded, _ in replicas])

    @asynccontextmanager
    async def lifespan(_: object) -> Any:
        async with AsyncExitStack() as stack:
            for app, _, _ in replicas:
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    async def in_turns(scope: Scope, receive: Receive, send: Send) -> None:
        await next(turns)(scope, receive, send)

    both = Starlette(routes=[Mount("/", in_turns)], lifespan=lifespan)
    server = uvicorn.Server(uvicorn.Config(both, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        reason = "expected chromium and chromedriver on the PATH"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, "--window-size=1000,900"):
        options.add_argument(switch)
    folder = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.downloads = folder  # type: ignore[attr-defined]
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> Iterator[Page]:
    """The page, freshly opened; at the end, every request that it made must have been to its server."""
    browser.get_log("performance")
    browser.get(address)
    page = Page(browser)
    page.wait_for("#start")
    yield page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    asked = page.requested()
    assert f"{address}gradio_api/run/predict" in asked
    strangers = [url for url in asked if not url.startswith((address, f"blob:{address}", "data:"))]
    assert not strangers


class Page:
    """What a visitor does with the page."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser
        self.folder: Path = browser.downloads  # type: ignore[attr-defined]

    def wait_for(self, selector: str, ready: Callable[[WebElement], object] = lambda _: True) -> WebElement:
        """Return the first element that is there and ready."""

        def look(_: object) -> WebElement | None:
            found = self.browser.find_elements(By.CSS_SELECTOR, selector)
            return next((element for element in found if ready(element)), None)

        message = f"{selector} did not come"
        waiting = WebDriverWait(
            self.browser, PATIENCE_S, 0.2, (TimeoutException, StaleElementReferenceException)
        )
        return waiting.until(look, message)  # type: ignore[return-value, arg-type]

    def upload(self, view: str, path: Path) -> None:
        """Choose a picture's file, and wait until it is shown."""
        self.wait_for(f"#{view} input[type=file]").send_keys(str(path))
        self.wait_for(f"#{view} img", lambda image: image.get_attribute("src"))

    def click(self, selector: str) -> None:
        """Click as a hand does: Chromium lets a script start only one download."""
        element = self.wait_for(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def head(self) -> np.ndarray:
        """Wait until the canvas shows more than a ground; return its pixels [M, 3]."""
        found: list[np.ndarray] = []

        def drawn(canvas: WebElement) -> bool:
            pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB"))
            found.append(pixels.reshape(-1, 3))
            return len(np.unique(found[-1], axis=0)) >= COLOURS

        self.wait_for("#head canvas", drawn)
        return found[-1]

    def download(self, kind: str, name: str = "") -> bytes:
        """Click a download's button and return the file."""
        path = self.folder / (name or f"face.{kind}")
        path.unlink(missing_ok=True)
        self.click(f"#download-{kind}")
        WebDriverWait(self.browser, PATIENCE_S, 0.1).until(lambda _: path.exists(), f"no {path.name}")
        return path.read_bytes()

    def requested(self) -> list[str]:
        """Return the addresses asked for since the last look."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]


@pytest.mark.browser
@pytest.mark.serve
def test_pictures_become_a_head_to_turn_move_and_download(page: Page, triple: Fields, tmp_path: Path) -> None:
    for view, (name, data, _) in triple.items():
        (tmp_path / name).write_bytes(data)
        page.upload(view, tmp_path / name)
    page.click("#start")
    page.wait_for("#summary", lambda element: "Eye distance" in element.text)
    skin = page.head()
    assert np.median(skin[np.ptp(skin.astype(int), axis=1) > 10], axis=0).max() > 80, "the skin is black"

    face = trimesh.load(io.BytesIO(page.download("glb")), file_type="glb", force="mesh")
    assert len(face.vertices) > 30_000
    assert 0.12 < face.extents[0] < 0.25, "glTF is in metres"
    answer = json.loads(page.download("json"))
    assert len(answer["coefficients"]["identity"]) == 80
    assert [view["source"] for view in answer["views"]] == list(VIEW_NAMES)

    page.click("#paint label:nth-of-type(3)")
    page.wait_for("#legend", lambda element: "0 to 50 %" in element.text)
    page.requested()
    page.wait_for(".narrow input[type=number]").send_keys(Keys.BACKSPACE, "1", Keys.TAB)
    page.wait_for("#head", lambda _: any(url.endswith("face.glb") for url in page.requested()))
    page.head()
    moved = trimesh.load(io.BytesIO(page.download("ply")), file_type="ply")
    opened_mm = 1000 * face.vertices[:, 1].min() - moved.vertices[:, 1].min()
    assert opened_mm > 5, "the jaw has dropped"
    grey = np.ptp(moved.visual.vertex_colors[:, :3].astype(int), axis=1) < 10
    assert grey.mean() < 0.5, "files have the paint that is shown"


@pytest.mark.browser
@pytest.mark.serve
def test_a_head_is_made_shown_and_downloaded_on_a_phone(
    page: Page, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def plain_head(face: Face, *_: Any) -> bytes:
        assert go_on.wait(PATIENCE_S)
        texture = np.full((64, 64, 3), (200, 150, 130), np.uint8)
        return encode_glb(pose_head(engine.head, face.params.identity, texture))

    monkeypatch.setattr(engine, "avatar_file", plain_head)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.click("tr.tr-body")
    page.wait_for("#summary", lambda element: "Eye distance" in element.text)
    page.click("#refine input")
    page.requested()
    page.click("#animate")
    page.wait_for("#notice", lambda notice: "Making the head" in notice.text)
    go_on.set()
    page.wait_for("#download-head", lambda button: button.is_displayed())
    page.wait_for("#head", lambda _: any(url.endswith("head.glb") for url in page.requested()))
    page.wait_for("#notice", lambda notice: not notice.text)
    page.wait_for("#summary", lambda summary: NOT_REFINED in summary.text)  # the examples are crops
    skin = page.head()
    assert np.median(skin[np.ptp(skin.astype(int), axis=1) > 10], axis=0).max() > 80, "the skin is black"
    data = page.download("head", "head.glb")
    head = trimesh.load(io.BytesIO(data), file_type="glb", force="mesh")
    assert 0.2 < head.extents[1] < 0.5, "the whole head, in metres"
    assert b"tongueOut" in data
    assert page.browser.execute_script(WIDTH) == [PHONE["width"], PHONE["width"]]
    page.click("tr.tr-body")  # another reconstruction, to which this head does not belong
    WebDriverWait(page.browser, PATIENCE_S, 0.2).until(
        lambda browser: not browser.find_elements(By.CSS_SELECTOR, "#download-head"), "the head stayed"
    )


@pytest.mark.browser
@pytest.mark.serve
def test_errors_are_said_in_words(page: Page, engine: Engine, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    (tmp_path / "noise.png").write_bytes(png(noise))
    page.upload("front", tmp_path / "noise.png")
    page.click("#start")
    words = "expected landmarks" if engine.finder_name == "none" else "expected one face, found none"
    page.wait_for("#notice", lambda notice: f"Front view: {words}" in notice.text)
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#head canvas")


@pytest.mark.browser
@pytest.mark.serve
def test_an_example_fits_a_phone(page: Page) -> None:
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.click("tr.tr-body")
    page.wait_for("#summary", lambda element: "Eye distance" in element.text)
    page.head()
    assert page.browser.execute_script(WIDTH) == [PHONE["width"], PHONE["width"]]
    sliders = page.browser.find_elements(By.CSS_SELECTOR, "input[type=range]")
    assert all(s.rect["x"] >= 0 and s.rect["x"] + s.rect["width"] <= PHONE["width"] for s in sliders)


@pytest.mark.serve
def test_a_server_that_starts_sweeps_what_others_left(engine: Engine) -> None:
    left = page_files.PageFolder.open().write("left.png", b"left")
    os.utime(left, (time.time() - page_files.AGE_S - 1,) * 2)
    with TestClient(build_replica(engine)[1]):
        for _ in range(100):
            if not left.exists():
                break
            time.sleep(0.05)
    assert not left.exists()


@pytest.fixture(scope="module")
def replica(engine: Engine) -> Iterator[tuple[TestClient, Any]]:
    app, guarded, endpoint = build_replica(engine)
    assert app.router.routes
    with TestClient(guarded, raise_server_exceptions=False) as client:
        yield client, endpoint


@pytest.mark.serve
def test_the_other_routes_stay_as_they_are(replica: tuple[TestClient, Any]) -> None:
    client, _ = replica
    assert client.get("/readyz").json() == {"status": "ready"}, "the endpoint's lifespan has run"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert "dfmvr_requests_total" in client.get("/metrics").text
    assert client.get("/openapi.json").json()["info"]["title"] == "dfmvr"
    assert client.get("/v1/model").json()["image_size"] == 64
    problem(client.get("/v1/reconstructions"), 405, reason="method_not_allowed")
    problem(client.get("/v1/nothing"), 404, reason="not_found")
    assert client.get("/").headers["content-type"].startswith("text/html")


@pytest.mark.serve
@pytest.mark.parametrize(
    "path",
    [
        *("gradio_api/proxy=http://localhost/", "gradio_api/file=http://localhost/", "gradio_api/info"),
        *("gradio_api/queue/data", "gradio_api/heartbeat/x", "gradio_api/vibe-code", "monitoring", "login"),
    ],
)
def test_doors_that_the_page_does_not_need_stay_shut(replica: tuple[TestClient, Any], path: str) -> None:
    problem(replica[0].get(f"/{path}"), 404, reason="not_found")


@pytest.mark.serve
def test_files_of_the_machine_stay_hidden(replica: tuple[TestClient, Any], tmp_path: Path) -> None:
    client, _ = replica
    (tmp_path / "secret.png").write_bytes(b"secret")
    around = f"{page_files.PageFolder.open().path}/../../..{tmp_path.resolve()}/secret.png"
    for path in (tmp_path / "secret.png", Path(__file__), around):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
        for upload in (
            {"path": str(path)},
            {"path": str(path), "meta": {"_type": "gradio.FileData"}},
        ):
            answer = reconstruct(client, upload).json()  # Gradio itself refuses the second kind
            assert answer.get("data", ["another file"])[-1].find("another file") >= 0
            assert answer.get("error", None) is None


@pytest.mark.serve
def test_addresses_are_not_fetched(replica: tuple[TestClient, Any]) -> None:
    upload = {"path": "http://example.com/face.png", "meta": {"_type": "gradio.FileData"}}
    answer = reconstruct(replica[0], upload).json()
    assert answer["error"] == "expected an uploaded picture, got an address"


@pytest.mark.serve
def test_the_page_waits_in_the_same_queue_and_is_counted(
    replica: tuple[TestClient, Any], triple: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, endpoint = replica
    files = [("files", triple["front"])]
    path = client.post("/gradio_api/upload", files=files).json()[0]
    upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = reconstruct(client, upload).json()["data"]
    assert json.loads(answer[0])["answer"]["coefficients"]["identity"]
    assert "Less certain:** no left view" in answer[2]
    assert 'dfmvr_requests_total{route="page",status="200"} 1.0' in client.get("/metrics").text

    monkeypatch.setattr(endpoint, "_under_way", endpoint.settings.queue)
    busy = reconstruct(client, upload)
    assert "requests are under way, as many as this replica takes" in busy.json()["data"][-1]
    assert 'dfmvr_requests_total{route="page",status="503"} 1.0' in client.get("/metrics").text

    monkeypatch.undo()
    monkeypatch.setattr(endpoint.avatars._free, "acquire", lambda blocking: False)
    busy = reconstruct(client, upload, True)
    assert "heads as this replica takes (2) are under way" in busy.json()["data"][-1]
    assert busy.json()["data"][0] == {"__type__": "update"}, "what was shown stays"

    monkeypatch.undo()
    Path(path).unlink()
    gone = reconstruct(client, upload).json()["data"]
    assert "expected a picture chosen in the last 10 minutes" in gone[-1]
    assert gone[:2] == ["", None], "no older head stays"


def reconstruct(client: TestClient, front: dict[str, Any], *given: Any) -> Any:
    """Ask as the page does: for a face, or with `given` as (refine,) for an animatable head."""
    given = given or (False, "texture")
    events = client.get("/config").json()["dependencies"]
    event = next(e for e in events if len(e["inputs"]) == len(given) + 3 and len(e["outputs"]) > 4)
    body = {"data": [None, front, None, *given], "fn_index": event["id"], "session_hash": "test"}
    return client.post("/gradio_api/run/predict", json=body)


@pytest.mark.serve
def test_without_memory_for_pictures_there_is_no_page(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page_files, "MEMORY", tmp_path / "missing")
    endpoint = endpoint_of(ServeSettings(keys="none"), engine)
    app, guarded = build_api(endpoint, None)
    with caplog.at_level(logging.ERROR):
        mount_page(app, endpoint)
    assert "no page: " in caplog.text
    assert "expected a file system in memory" in caplog.text
    with TestClient(guarded) as client:
        problem(client.get("/"), 404, reason="not_found")
        assert client.get("/healthz").status_code == 200
