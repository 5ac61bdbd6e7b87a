"""The page at `/`: pictures in, a head to turn, to move and to download.

Gradio, mounted in the endpoint's app. Any replica may answer any of the page's requests, so that the server
keeps nothing but files for a few minutes: a reconstruction's coefficients travel through the browser. All
scripts, styles and fonts come from here.
"""

from __future__ import annotations

import logging
import os
from typing import cast

from fastapi import FastAPI
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.endpoint import Endpoint
from serve.page_files import PageFolder, PageRefused

OUR_PATHS = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/upload", "/gradio_api/upload_progress")
)
OUR_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/run/", "/gradio_api/file=/")
UPLOAD = "/gradio_api/upload"
_LOG = logging.getLogger("serve.page")


def mount_page(app: FastAPI, endpoint: Endpoint) -> None:
    """Serve the page at `/`, beside the routes that the app has already.

    Without a file system in memory for pictures there is no page; the log says so.

    Args:
        app: of `build_api`.
        endpoint: that does the work.
    """
    try:
        folder = PageFolder.open()
    except PageRefused as error:
        _LOG.error("no page: %s", error)
        return
    # Gradio reads these when it is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
    import gradio as gr

    from serve.page_blocks import EXAMPLES, build_blocks
    from serve.page_text import STYLE

    gr.set_static_paths([EXAMPLES])
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blocks = build_blocks(endpoint, folder)
    blocks.has_launched = True  # else Gradio does not check whose files a visitor names
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        app_kwargs={"lifespan": folder.lifespan},
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=int(endpoint.settings.max_body_mb * 1e6),
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts),  # type: ignore[arg-type]
        css=STYLE,
    )
    mounted = cast(Mount, app.router.routes.pop())
    app.router.routes.append(_PageMount(mounted.app, folder))


class _PageMount(Mount):
    """Gradio's app, behind the paths that the page needs: it has more doors, a proxy for one.

    All other paths are left to the endpoint's own routes, so that a wrong one is answered in their words.
    """

    def __init__(self, app: ASGIApp, folder: PageFolder) -> None:
        super().__init__("/", app)
        self.folder = folder

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether a request is the page's."""
        path = scope.get("path", "")
        if scope["type"] == "http" and (path in OUR_PATHS or path.startswith(OUR_FOLDERS)):
            return super().matches(scope)
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; make room before an upload."""
        if scope["path"] == UPLOAD:
            self.folder.sweep()
        await super().handle(scope, receive, send)
