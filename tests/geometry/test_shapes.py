"""The shapes in annotations are true, and a wrong shape is found when they are checked at run time."""

import subprocess
import sys

SETUP = """
from jaxtyping import install_import_hook

hook = install_import_hook(["dfmvr.geometry", "dfmvr.lighting"], "beartype.beartype")
with hook:
    from dfmvr.geometry import align, camera, mesh, rotation
    from dfmvr import lighting
import torch

V = torch.randn(2, 1, 9, 3)
R = rotation.euler_to_matrix(torch.randn(2, 4, 3))
T = torch.tensor([[0, 1, 2], [3, 4, 5]])
"""

RIGHT = """
posed = camera.to_camera(V, R, torch.zeros(2, 4, 3))
assert posed.shape == (2, 4, 9, 3)
camera.project(posed, camera.default_intrinsics(64))
normals = mesh.vertex_normals(posed, T)
mesh.vertex_areas(posed, T)
shaded = lighting.shade(torch.rand(2, 1, 9, 3), normals, torch.zeros(2, 4, 9, 3))
lighting.srgb_to_linear(lighting.linear_to_srgb(shaded))
rotation.six_d_to_matrix(rotation.matrix_to_six_d(R))
rotation.matrix_to_euler(R)
align.umeyama(posed, posed + 1.0, torch.ones(2, 4, 9)).apply(posed)
"""

WRONG = {
    "points of two coordinates": "camera.project(torch.zeros(5, 2), torch.eye(3))",
    "unequal numbers of points": "align.umeyama(torch.zeros(7, 3), torch.zeros(6, 3))",
    "a light of four bands": "lighting.shade(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(4, 3))",
    "triangles of floats": "mesh.vertex_normals(V, T.float())",
}


def test_shapes_are_checked():
    lines = [f"try:\n    {call}\nexcept TypeCheckError:\n    print({name!r})" for name, call in WRONG.items()]
    code = "\n".join([SETUP, RIGHT, "from jaxtyping import TypeCheckError", *lines])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == list(WRONG)
