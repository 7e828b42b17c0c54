"""What several ranks share: the samples of an epoch, and the memory and cores of a machine."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hookloop.data.fields import Ints
    from hookloop.distributed import Ranks, Share


def own_items(n: int, batch_size: int, share: Share) -> Ints:
    """Number the samples of *n* that are in the rows of *share*, batch after batch: ascending.

    Of each batch there are as many, but for a short last one, of which there may be fewer.
    """
    full, rest = divmod(n, batch_size)
    rows = np.array(share.rows(batch_size), np.int64)
    items = (np.arange(full)[:, None] * batch_size + rows).ravel()
    last = np.array(share.rows(rest), np.int64) if rest else np.empty(0, np.int64)
    return np.concatenate([items, full * batch_size + last])


def on_this_host(ranks: Ranks) -> int:
    """Count the *ranks* on this machine; every one of them asks."""
    here = socket.gethostname()
    return ranks.gather(here).count(here)
