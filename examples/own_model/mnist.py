"""A reader of MNIST (LeCun, Cortes, Burges 1998), as torchvision.datasets.MNIST is one."""

import gzip
import os
import struct
from pathlib import Path

import torch

FOLDER = Path(os.environ.get("MNIST", Path.home() / ".cache" / "mnist"))  # the four .gz files
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"  # PyTorch's copy: 11.6 MB, once


def read(name):
    """An array in IDX format: its rank is byte 3, sizes are big-endian, then bytes follow."""
    path = FOLDER / f"{name}-ubyte.gz"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{MIRROR}/{path.name}", str(path), progress=False)
    data = bytearray(gzip.decompress(path.read_bytes()))
    sizes = struct.unpack_from(f">{data[3]}I", data, 4)
    return torch.frombuffer(data, dtype=torch.uint8, offset=4 + 4 * len(sizes)).view(sizes)


def pictures_and_labels(part):
    """Pictures (n, 1, 28, 28) from 0 to 1 and digits (n,) of ``train`` or ``t10k``."""
    return read(f"{part}-images-idx3")[:, None] / 255, read(f"{part}-labels-idx1").long()
