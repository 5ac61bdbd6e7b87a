"""three.js in headless Chromium loads the GLB, and a smile moves the mouth."""

from __future__ import annotations

import base64
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfmvr.avatar.build import Avatar
from dfmvr.avatar.gltf import encode_glb

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=600,600"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="expected chromium and chromedriver"),
]

PAGE = """<!doctype html><script type="importmap">{"imports": {
    "three": "/three/build/three.module.js", "three/addons/": "/three/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({ preserveDrawingBuffer: true });
renderer.setSize(400, 400);
const scene = new THREE.Scene();
scene.background = new THREE.Color(0, 0, 1);
scene.add(new THREE.HemisphereLight(0xffffff, 0x888888, 3));
const camera = new THREE.PerspectiveCamera(20, 1, 0.1, 10);
camera.position.z = 1;
new GLTFLoader().load("/head.glb", gltf => {
    scene.add(gltf.scene);
    window.draw = weights => {
        gltf.scene.traverse(part => part.isMesh && Object.entries(weights).forEach(([unit, weight]) => {
            part.morphTargetInfluences[part.morphTargetDictionary[unit]] = weight;
        }));
        renderer.render(scene, camera);
        return renderer.domElement.toDataURL("image/png");
    };
    window.parts = [];
    gltf.scene.traverse(part => part.isMesh && window.parts.push(
        [part.material.name, Object.keys(part.morphTargetDictionary).length]));
    document.title = "ready";
}, undefined, error => { document.title = "failed: " + error; });
</script>"""


@pytest.fixture(scope="module")
def address(
    avatar: Avatar, node_package: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("three")
    (folder / "head.glb").write_bytes(encode_glb(avatar))
    (folder / "index.html").write_text(PAGE)
    (folder / "three").symlink_to(node_package("three"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_smile_moves_the_mouth(address: str) -> None:
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in SWITCHES:
        options.add_argument(switch)
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.get(address)
        WebDriverWait(driver, 60).until(lambda driver: driver.title)
        assert driver.title == "ready"
        parts = driver.execute_script("return window.parts")
        assert parts == [[name, 52] for name in ("skin", "eyes", "teeth", "tongue")]

        def draw(**weights: float) -> np.ndarray:
            answer = driver.execute_script("return window.draw(arguments[0])", weights)
            picture = Image.open(io.BytesIO(base64.b64decode(answer.partition(",")[2])))
            return np.asarray(picture.convert("RGB")).astype(int)

        rest = draw()
        smile = draw(mouthSmileLeft=1.0, mouthSmileRight=1.0)
        again = draw(mouthSmileLeft=0.0, mouthSmileRight=0.0)
    backdrop = (0, 0, 255)
    assert 0.2 < (rest != backdrop).any(-1).mean() < 0.9
    np.testing.assert_array_equal(again, rest)
    changed = np.abs(smile - rest).max(-1) > 8
    # 1 mm is 1.13 pixels; the model's origin is in the middle of the picture.
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 300
    assert changed[:150].sum() == 0  # the brow and above, from 44 mm
    assert np.median(rows) > 200  # below the middle
    assert abs(np.median(columns) - 200) < 40
