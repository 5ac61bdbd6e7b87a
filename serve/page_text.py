"""The page's words, styles and scripts."""

from __future__ import annotations

import html

from dfmvr.evaluation.pictures import ERROR_SCALE
from serve.page_files import AGE_S
from serve.page_work import TOP_ERROR
from serve.problems import TITLES, Problem
from serve.schemas import ReconstructionAnswer

TITLE = "dfmvr: a 3D face from a few photographs"
_MINUTES = f"{AGE_S / 60:g} minutes"
INTRODUCTION = f"""# A 3D face from a few photographs
One to three pictures of one person, best all from the same moment; the front view must be there. Pictures
stay in this server's memory, for at most {_MINUTES}. Programs ask at `/v1/reconstructions`
([OpenAPI](/openapi.json))."""
VIEWS = {"left": "Left", "front": "Front", "right": "Right"}
DROP = "Drop or choose"
WAITING = (
    "Left shows the person's left cheek: the nose points to the picture's left. Or choose an example below."
)
EXAMPLES = "Examples: synthetic people"
HEAD = "Head: drag to turn, scroll or pinch"
PAINTS = {"texture": "Texture", "shape": "Shape", "error": "Error map"}
REFINE = "Refine: fit the face to the landmarks found in the pictures"
ANIMATABLE = "Animatable head (GLB)"
MAKING = "Making the head: this takes some seconds, more when others wait."
MADE = "Download the animatable head"
PHOTOGRAPHED = "Start from the photographed expression"
GONE = f"expected a picture chosen in the last {_MINUTES}, got an older one, which is gone; choose it again"
_STOPS = ", ".join(f"rgb{colour} {100 * place:g}%" for place, colour in ERROR_SCALE)
LEGEND = f"""<div>Difference between photograph and render, 0 to {100 * TOP_ERROR:g} % of full brightness;
grey: seen in no picture.</div><div style="display: flex; gap: 8px; align-items: center">0 %
<div style="flex: 1; height: 10px; background: linear-gradient(to right, {_STOPS})"></div>
{100 * TOP_ERROR:g} %</div>"""
STYLE = """
.gradio-container { max-width: 1240px !important; }
.downloads { display: grid !important; grid-template-columns: repeat(4, 1fr); gap: 8px !important; }
@media (max-width: 700px) { .downloads { grid-template-columns: 1fr 1fr; } }
.making { border-left: 4px solid #0d9488; background: #f0fdfa; color: #134e4a; padding: 8px 12px; }
.narrow { flex-wrap: wrap; gap: 8px !important; }
.problem { border-left: 4px solid #b91c1c; background: #fef2f2; color: #7f1d1d; padding: 8px 12px; }
#left img, #front img, #right img { object-fit: contain; height: 148px; }
"""
SAY_MAKING = f"""() => '<div class="making" role="status">{MAKING}</div>'"""
SHOW_HEAD = """(kept, notice) => {
    if (!kept || notice || innerWidth >= 700) return;
    document.querySelector("#head").scrollIntoView({ behavior: "smooth" });
}"""
DOWNLOAD = """(file) => {
    if (!file) return;
    const link = Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name });
    document.body.append(link);
    link.click();
    link.remove();
}"""
DOWNLOAD_ANSWER = """(kept) => {
    if (!kept) return;
    const text = JSON.stringify(JSON.parse(kept).answer, null, 1);
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const link = Object.assign(document.createElement("a"), { href: url, download: "face.json" });
    document.body.append(link);
    link.click();
    link.remove();
}"""


def notice(problem: Problem) -> str:
    """Say in HTML what went wrong."""
    detail = html.escape(problem.detail[0].upper() + problem.detail[1:])
    return f'<div class="problem" role="alert"><b>{html.escape(TITLES[problem.status])}.</b> {detail}</div>'


def summary(answer: ReconstructionAnswer) -> str:
    """Say what was found, in Markdown: sizes, time, and what makes it uncertain."""
    sizes = answer.sizes
    lines = [
        f"Eye distance {sizes.eye_centres_mm:.1f} mm, face {sizes.face_width_mm:.0f} mm wide, mouth "
        f"{sizes.mouth_width_mm:.1f} mm (as if the face were of usual size: pictures do not tell it). "
        f"Computed in {sum(answer.timings_ms.values()) / 1000:.2f} s."
    ]
    if answer.refined:
        lines.append("- Refined: fitted to the landmarks of the pictures.")
    lines += [f"- **Less certain:** {html.escape(warning)}" for warning in answer.warnings]
    return "\n".join([lines[0], "", *lines[1:]])
