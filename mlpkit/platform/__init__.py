"""The platform around mlpkit: the machine and the database.

`ReplicaSync`, the front door to that database, is in `mlpkit.platform.cluster`, which imports SQLAlchemy.
"""

from mlpkit.platform.node import node_info

__all__ = ["node_info"]
