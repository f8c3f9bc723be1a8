"""Eight loaders behind one interface, each written as a user of that library would, with its fastest plain settings.

A file knows nothing of the others, and imports its library only where that is used: all of them cannot live in one
environment.
"""

from peers.base import Peer
from peers.energon import Energon
from peers.grain import Grain
from peers.huggingface import HuggingFace
from peers.litdata import LitData
from peers.mosaic import Mosaic
from peers.motet import Motet
from peers.raydata import RayData
from peers.webdataset import WebDataset

PEERS: dict[str, Peer] = {
    "motet": Motet(),
    "litdata": LitData(),
    "mosaic": Mosaic(),
    "grain": Grain(),
    "webdataset": WebDataset(),
    "energon": Energon(),
    "huggingface": HuggingFace(),
    "raydata": RayData(),
}
