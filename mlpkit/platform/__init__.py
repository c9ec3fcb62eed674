"""What mlpkit knows of the platform around it: the machine it runs on, and the database that replicas share.

`ReplicaSync`, the front door to that database, is in `mlpkit.platform.cluster`, which imports SQLAlchemy.
"""

from mlpkit.platform.node import node_info

__all__ = ["node_info"]
