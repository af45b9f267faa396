"""What griptape has stored, as runs and a head, and runs and a head as what griptape loads.

Nothing here needs griptape, and nothing of it is ever imported by a name that a file gives. All files since its
release 0.10 are read; files are written in the form of 1.13, and memkit's own in it lies under keys `memkit`,
where griptape keeps it.
"""

from memkit.adapters.griptape.codec import GriptapeCodec
from memkit.adapters.griptape.payload import Imported, dump, read
from memkit.adapters.griptape.sources import (
    export,
    read_dynamodb,
    read_file,
    read_redis,
    read_thread,
    store,
)

__all__ = (
    "GriptapeCodec",
    "Imported",
    "dump",
    "export",
    "read",
    "read_dynamodb",
    "read_file",
    "read_redis",
    "read_thread",
    "store",
)
