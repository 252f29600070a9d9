"""Communication, events, logging, seeding and files."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.logger import setup_logger
else:
    from detrx.d2.embedded import comm
    from detrx.d2.embedded.env import seed_all_rng
    from detrx.d2.embedded.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from detrx.d2.embedded.file_io import PathManager
    from detrx.d2.embedded.logger import setup_logger

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "PathManager",
    "TensorboardXWriter",
    "comm",
    "get_event_storage",
    "seed_all_rng",
    "setup_logger",
]
