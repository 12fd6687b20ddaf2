"""Fingerprints: of data, whatever its folder is called, and of all that an answer depends on."""

import json
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

import torch

from shared.base.files import code_digest
from shared.config.schema import RESUMABLE, Config
from shared.data.examples import Examples
from shared.data.resolve import documents_of
from shared.modes.estimators import with_estimator
from shared.protocol.messages import Request
from shared.training.corpus import columns_of
from shared.training.oracle import Oracle


def fingerprint_own(own: Config) -> str:
    """SHA-256 over the sorted documents of a site's own data, hexadecimal.

    All of them, whatever a run takes of them: another block size is no other data.

    Args:
        own: settings whose ``dataset`` and columns are those of the site.

    Raises:
        ConfigError, DataError: the data cannot be had.
    """
    documents = documents_of(own.data.dataset, columns=columns_of(own))
    return _combine(text.encode() for text in documents.texts).hex()


def fingerprint_dealt(examples: Examples) -> str:
    """SHA-256 over the sorted examples that a run deals to a site, hexadecimal."""
    labels = [b""] * len(examples)
    own = examples.labels if examples.targets is None else examples.targets
    if own is not None:
        labels = [str(label).encode() for label in own.tolist()]
    rows = (row.tobytes() for row in examples.tokens)
    pairs = zip(labels, rows, strict=True)
    return _combine(label + b" " + row for label, row in pairs).hex()


def fingerprint_request(oracle: Oracle, request: Request, config: Config, *more: str) -> bytes:
    """SHA-256 of what a site is asked: run, round, settings, code, and the parameters themselves.

    The parameters enter by a SHA-256 of their own: whoever chooses them can forge the digest that
    sites and server compare. ``more`` names what else the answer depends on. A run that is resumed
    has the estimator that it has recorded in place of ``auto``: that is no other request.
    """
    flat = oracle.replica.model.flat.detach().cpu().contiguous()
    parts = (
        request.run,
        request.round.to_bytes(8, "little"),
        sha256(flat.view(torch.uint8).numpy().tobytes()).digest(),
        oracle.base,
        _decisive(config),
        code_digest(),
        *(text.encode() for text in more),
    )
    return sha256(b"".join(sha256(part).digest() for part in parts)).digest()


@lru_cache(maxsize=4)  # sites of one process may be in different runs
def _decisive(config: Config) -> bytes:
    """The settings that make a run this one, as text."""
    recorded = with_estimator(config).to_run_config()
    decisive = {k: v for k, v in recorded.items() if k not in RESUMABLE}
    return json.dumps(decisive, sort_keys=True).encode()


def _combine(parts: Iterable[bytes]) -> bytes:
    return sha256(b"".join(sorted(sha256(part).digest() for part in parts))).digest()
