"""The data set that comes with Millrace: daily bars of five stocks, 2000 to 2013.

Every row passes the checks of ``read_feed``, raw and adjusted. Origin and licence: ``producers/data/NOTICE``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from schemas.errors import FeedError

FEED_NAME = "stocks-daily"
"""Name of the feed under which the bundled bars are replayed."""

_FILE = "stocks.csv.gz"


def bundled_feed_path() -> Path:
    """Path of the bundled file, in the long CSV layout.

    Raises:
        FeedError: the installation lacks the file.
    """
    path = resources.files("producers.data").joinpath(_FILE)
    if not isinstance(path, Path) or not path.is_file():
        raise FeedError(f"bundled feed {path}: expected a file, found none; install Millrace again, unzipped")
    return path
