"""QR-DETR: query routing for detection transformers."""

from .qr_detr import QueryRouting
from .routed_layer import DEFAULT_FFN, RoutedDecoderLayer
from .router import FixedRouter, QueryRouter, force_routers

__all__ = ["DEFAULT_FFN", "FixedRouter", "QueryRouter", "QueryRouting", "RoutedDecoderLayer", "force_routers"]
