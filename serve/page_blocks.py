"""The page's layout, its events and what they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils

from dfmvr.export import encode_mesh
from dfmvr.types import VIEW_NAMES
from serve import page_text as text
from serve.endpoint import AVATAR_FILE, Endpoint, owner_of
from serve.page_files import PageFolder
from serve.page_work import PAINTS, Kept, draw_head, keep, read_kept, sliders_for
from serve.problems import Problem

EXAMPLES = Path(__file__).parent / "examples"
"""Crops of synthetic people, drawn by scripts/draw_page_examples.py."""
PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private"}
"""Of every event: a queue would live in one replica, and programs have a better interface."""
ROUTE = "page"
"""Under which its requests are counted."""
MAX_SESSIONS = 50
"""Gradio remembers the last values of so many visitors; nothing here needs them."""
DOWNLOADS = ("glb", "obj", "ply", "json")

Upload = dict[str, Any] | None


def build_blocks(endpoint: Endpoint, folder: PageFolder) -> gr.Blocks:
    """Lay the page out and connect its events.

    Args:
        endpoint: that does the work.
        folder: for the files that the page shows.
    """
    processing_utils.async_ssrf_protected_download = _refuse_address
    handlers = _Handlers(endpoint, folder)
    with gr.Blocks(title=text.TITLE, analytics_enabled=False, fill_width=True) as blocks:
        blocks.state_session_capacity = MAX_SESSIONS
        gr.Markdown(text.INTRODUCTION)
        kept = gr.Textbox(visible="hidden", elem_id="kept")
        file, animated_file = gr.File(visible="hidden"), gr.File(visible="hidden")
        with gr.Row():
            with gr.Column(min_width=320):
                with gr.Row(elem_classes="narrow"):
                    pictures = [_picture_input(name) for name in VIEW_NAMES]
                refine = gr.Checkbox(False, label=text.REFINE, elem_id="refine")
                start = gr.Button("Reconstruct", variant="primary", elem_id="start")
                animate = gr.Button(text.ANIMATABLE, elem_id="animate", visible=endpoint.avatars is not None)
                notice = gr.HTML("", elem_id="notice", padding=False)
                summary = gr.Markdown(text.WAITING, elem_id="summary", min_height=100)
                examples = gr.Examples(_examples(), pictures, cache_examples=False, label=text.EXAMPLES)
            with gr.Column(min_width=320):
                head = gr.Model3D(label=text.HEAD, height=440, elem_id="head", interactive=False)
                choices = [(text.PAINTS[name], name) for name in PAINTS]
                paint = gr.Radio(choices, value=PAINTS[0], label="Paint", elem_id="paint")
                legend = gr.HTML(text.LEGEND, visible=False, elem_id="legend")
                animated = gr.Button(text.MADE, visible=False, elem_id="download-head")
                with gr.Row(elem_classes="downloads"):
                    buttons = {
                        kind: gr.Button(
                            f"Download {kind.upper()}", size="sm", min_width=80, elem_id=f"download-{kind}"
                        )
                        for kind in DOWNLOADS
                    }
                with gr.Accordion("Expression"):
                    photographed = gr.Checkbox(True, label=text.PHOTOGRAPHED)
                    with gr.Row(elem_classes="narrow"):
                        moves = [
                            gr.Slider(0, 1, 0, step=0.05, label=label, min_width=200)
                            for label in sliders_for(handlers.face_model)
                        ]
                    neutral = gr.Button("Neutral", size="sm", elem_id="neutral")
        expression = [photographed, *moves]
        shown = [kept, paint, *expression]
        common = {
            "outputs": [kept, head, summary, *expression, animated_file, animated, notice],
            "show_progress_on": [head, summary],
            "preprocess": False,  # Gradio would decode the pictures, without the endpoint's limits
            **PRIVATE,
        }
        begun = {"fn": handlers.reconstruct, "inputs": [*pictures, refine, paint], **common}
        animate.click(None, None, notice, js=text.SAY_MAKING)
        for done in (
            start.click(**begun),
            examples.load_input_event.then(**begun),
            animate.click(handlers.animate, [*pictures, refine], **common),
        ):
            done.success(None, [kept, notice], None, js=text.SHOW_HEAD)
        animated.click(None, animated_file, None, js=text.DOWNLOAD)
        redrawn = {"fn": handlers.show, "inputs": [head, *shown], "outputs": [head, notice], **PRIVATE}
        paint.input(**redrawn, trigger_mode="always_last")
        paint.change(lambda name: gr.update(visible=name == "error"), paint, legend, **PRIVATE)
        photographed.input(**redrawn, trigger_mode="always_last")
        for move in moves:
            move.release(**redrawn, trigger_mode="always_last")
        at_rest = [False, *(0.0 for _ in moves)]
        neutral.click(lambda: at_rest, None, expression, **PRIVATE).then(**redrawn)
        buttons["glb"].click(None, head, None, js=text.DOWNLOAD)
        buttons["json"].click(None, kept, None, js=text.DOWNLOAD_ANSWER)
        for kind in ("obj", "ply"):
            written = buttons[kind].click(handlers.writer(kind), shown, [file, notice], **PRIVATE)
            written.success(None, file, None, js=text.DOWNLOAD)
    return blocks


def _picture_input(view: str) -> gr.Image:
    return gr.Image(
        label=text.VIEWS[view],
        sources=["upload", "webcam", "clipboard"],
        elem_id=view,
        height=190,
        min_width=100,
        placeholder=text.DROP,
        buttons=[],
    )


def _examples() -> list[list[str]]:
    """Return the examples' files, [left, front, right] each."""
    people = sorted({path.stem.partition("_")[0] for path in EXAMPLES.glob("*.png")})
    return [[str(EXAMPLES / f"{person}_{view}.png") for view in VIEW_NAMES] for person in people]


class _Handlers:
    """What the events do; each may run in another replica than the last."""

    def __init__(self, endpoint: Endpoint, folder: PageFolder) -> None:
        self.endpoint, self.folder = endpoint, folder
        self.face_model = endpoint.engine.predictor.face_model
        self.at_rest = [0.0 for _ in sliders_for(self.face_model)]

    async def reconstruct(
        self, request: gr.Request, left: Upload, front: Upload, right: Upload, refine: bool, paint: str
    ) -> list[Any]:
        """Return what is kept, the head's file, its summary, the expression at rest, no avatar, a notice."""

        async def work() -> list[Any]:
            endpoint, timings = self.endpoint, dict[str, float]()
            form = await endpoint.run(read_uploads, (left, front, right), self.folder)
            face, views = await endpoint.face(form, timings, refine)
            answer = endpoint.engine.answer(face, views, timings)
            kept = await endpoint.run(keep, answer, face, views)
            path = await endpoint.run(self._write, "glb", kept, paint, True, self.at_rest)
            shown = [kept.model_dump_json(), path, text.summary(answer)]
            return [*shown, True, *self.at_rest, None, gr.update(visible=False)]

        nothing = ["", None, text.WAITING, True, *self.at_rest, None, gr.update(visible=False)]
        return await self._attempt(request, work, nothing)

    async def animate(
        self, request: gr.Request, left: Upload, front: Upload, right: Upload, refine: bool
    ) -> list[Any]:
        """Return the same with an avatar, its file and its button; a problem leaves all as it was."""

        async def work() -> list[Any]:
            endpoint, timings = self.endpoint, dict[str, float]()
            form = await endpoint.run(read_uploads, (left, front, right), self.folder)
            data, face, views = await endpoint.avatar(form, timings, refine)
            answer = endpoint.engine.answer(face, views, timings)
            kept = await endpoint.run(keep, answer, face, views)
            path = str(await endpoint.run(self.folder.write, AVATAR_FILE, data))
            shown = [kept.model_dump_json(), path, text.summary(answer)]
            return [*shown, True, *self.at_rest, path, gr.update(visible=True)]

        as_it_was = [gr.skip() for _ in range(len(self.at_rest) + 6)]
        limit_s = self.endpoint.settings.avatar_time_limit_s
        return await self._attempt(request, work, as_it_was, limit_s)

    async def show(
        self,
        request: gr.Request,
        head: gr.Model3D,  # this type asks Gradio for what the browser knows of it, not only for its file
        kept: str,
        paint: str,
        photographed: bool,
        *moves: float,
    ) -> list[Any]:
        """Return a head as it is to be seen, from where it was seen, and the notice."""
        if not kept:
            return [None, ""]
        work = partial(self._file, "glb", kept, paint, photographed, moves)
        path, notice = await self._attempt(request, work, [None])
        if path is None:
            return [gr.skip(), notice]
        alpha, beta, radius = head.camera_position
        # a position that has not changed would be taken for the first one
        turned = None if alpha is None else alpha + 1e-3
        return [gr.Model3D(path, camera_position=(turned, beta, radius)), notice]

    def writer(self, kind: str) -> Callable[..., Awaitable[list[Any]]]:
        """Return what writes the head as a file of a kind."""

        async def write(
            request: gr.Request, kept: str, paint: str, photographed: bool, *moves: float
        ) -> list[Any]:
            if not kept:
                return [None, ""]
            work = partial(self._file, kind, kept, paint, photographed, moves)
            return await self._attempt(request, work, [None])

        return write

    async def _file(self, kind: str, kept: str, *how: Any) -> list[Any]:
        return [await self.endpoint.run(lambda: self._write(kind, read_kept(kept), *how))]

    def _write(self, kind: str, kept: Kept, paint: str, photographed: bool, moves: Sequence[float]) -> str:
        mesh = draw_head(self.face_model, kept, paint, photographed, moves)
        data = encode_mesh(mesh, kind, extras=self.endpoint.engine.hashes)
        return str(self.folder.write(f"face.{kind}", data))

    async def _attempt(
        self,
        request: gr.Request,
        work: Callable[[], Awaitable[list[Any]]],
        otherwise: list[Any],
        limit_s: float | None = None,
    ) -> list[Any]:
        """Do work as the endpoint does a request's, and add the notice: a problem's words, or none.

        Gradio's own way, raising gr.Error, shows no words where there is no queue.
        """
        asked = request.request
        assert asked is not None
        try:
            return [*await self.endpoint.attempt(ROUTE, owner_of(asked), work, limit_s), ""]
        except Problem as problem:
            return [*otherwise, text.notice(problem)]


def read_uploads(uploads: Sequence[Upload], folder: PageFolder) -> dict[str, bytes]:
    """Return the bytes of uploaded files and examples, one or none for each of VIEW_NAMES, by view.

    Raises:
        Problem: one is neither, or has been swept away.
    """
    form = {}
    for name, upload in zip(VIEW_NAMES, uploads, strict=True):
        if upload is None:
            continue
        path = Path(str(upload.get("path"))).resolve()
        if not (path.is_relative_to(folder.path.resolve()) or path.is_relative_to(EXAMPLES.resolve())):
            raise Problem(
                422, f"{name}: expected an uploaded picture, got another file", name, "not_uploaded"
            )
        try:
            form[name] = path.read_bytes()
        except OSError:
            raise Problem(422, f"{name}: {text.GONE}", name, "gone") from None
    return form


async def _refuse_address(url: str, cache_dir: str) -> str:
    """Stand in for what would fetch a file from an address that a visitor names."""
    raise gr.Error("expected an uploaded picture, got an address", print_exception=False)
