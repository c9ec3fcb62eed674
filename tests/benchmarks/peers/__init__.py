"""The same workloads as each peer's own documentation would have them written; run by that peer's own Python."""
