"""Rebuilds the parameters of every round of a run from its ledger, and compares the digests.

``python -m docs.rebuild runs/first/ledger.sqlite`` needs Python 3.11 and numpy, nothing of
Dandelion; a copy of this folder alone does too (``python -m rebuild``). It was written from
docs/reference/ledger-layout.md, whose sections its modules follow.
"""
