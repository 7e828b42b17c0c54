"""Proof that a run cannot be lost: kill it, cut its power, refuse its writes, then let it end and compare.

``make faults`` runs everything; docs/faults.md says what it means.
"""
