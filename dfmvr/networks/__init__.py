"""The network that turns pictures into face parameters, and its parts: one idea a file."""

from dfmvr.networks.face_network import FaceNetwork, build_network
from dfmvr.networks.settings import PRESETS, NetworkSettings

__all__ = ["PRESETS", "FaceNetwork", "NetworkSettings", "build_network"]
