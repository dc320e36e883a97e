"""Backends: the contract for plugins, and how plugins are found, loaded and selected."""

from rnncore.backend.abilities import Abilities
from rnncore.backend.contract import (
    CONTRACT_VERSION,
    READABLE_VERSIONS,
    Backend,
    FormScans,
    ScanRequest,
    Scans,
)
from rnncore.backend.discovery import BackendStatus
from rnncore.backend.registry import backend_of, backends, get_backend, use_backend
from rnncore.typing import Array, Device, KernelMode, Namespace

__all__ = [
    "CONTRACT_VERSION",
    "READABLE_VERSIONS",
    "Abilities",
    "Array",
    "Backend",
    "BackendStatus",
    "Device",
    "FormScans",
    "KernelMode",
    "Namespace",
    "ScanRequest",
    "Scans",
    "backend_of",
    "backends",
    "get_backend",
    "use_backend",
]
