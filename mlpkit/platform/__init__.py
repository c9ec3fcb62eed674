"""What mlpkit knows of the platform around it: the machine it runs on, and its tables."""

from mlpkit.platform.node import node_info

__all__ = ["node_info"]
