"""What passed between the host and the devices: a list of (direction, bytes), for tests to look at and to clear."""

__all__ = ["log"]

log: list[tuple[str, int]] = []
