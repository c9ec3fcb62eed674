"""Several replicas around the platform's database.

`ReplicaSync`, the front door, is in `mlpkit.platform.cluster`, because that imports SQLAlchemy.
"""
