"""Terms: what the shares of all links of one pool have in common. This file knows no shares."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wspool._connection.link import Link
from wspool._connection.routes import Sort

logger = logging.getLogger("wspool")


class Terms:
    """What the lanes of one pool have in common."""

    def __init__(
        self,
        max_streams: int,
        max_unread: int,
        sort: Sort,
        on_nobody: Callable[[Link, str | bytes], object],
        on_overflow: Callable[[Any], object],
    ) -> None:
        self.max_streams = max_streams
        # Bytes that wait for one stream, while others read.
        self.max_unread = max_unread
        self.sort = sort
        # Is given each message that no stream will read; is told of a lane that was too slow.
        self.on_nobody = on_nobody
        self.on_overflow = on_overflow
        # Whether it was said that the route does not work.
        self._has_complained = False

    def complain(self, error: BaseException) -> None:
        """Say once in the life of a pool that its route does not work."""
        if not self._has_complained:
            self._has_complained = True
            logger.error(
                "route raised, or returned what is no key; such messages belong to nobody. This is "
                "said once for each pool",
                exc_info=error,
            )
