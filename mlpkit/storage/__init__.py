"""Storage: objects by `bucket/key`, a file cache, and whole models."""

from mlpkit.storage.counts import StorageCounts, StorageTotals
from mlpkit.storage.files import decode_json, replace_file, temporary_file, write_through
from mlpkit.storage.model_dir import (
    CheckpointManifest,
    Manifest,
    ModelDir,
    begin_model,
    checkpoint_place,
    delete_checkpoint,
    delete_model,
    discard_model,
    find_manifest,
    gate_problem,
    open_checkpoint,
    open_model,
    save_checkpoint,
    save_model,
)
from mlpkit.storage.paths import (
    ObjectStat,
    checked_key,
    checked_name,
    checked_path,
    location,
    without_outer_slashes,
)
from mlpkit.storage.storage import Storage, in_time, open_storage
from mlpkit.storage.store import folder_of, register_store, settings_for
from mlpkit.storage.stored import StoredModels

__all__ = [
    "CheckpointManifest",
    "Manifest",
    "ModelDir",
    "ObjectStat",
    "Storage",
    "StorageCounts",
    "StorageTotals",
    "StoredModels",
    "begin_model",
    "checked_key",
    "checked_name",
    "checked_path",
    "checkpoint_place",
    "decode_json",
    "delete_checkpoint",
    "delete_model",
    "discard_model",
    "find_manifest",
    "folder_of",
    "gate_problem",
    "in_time",
    "location",
    "open_checkpoint",
    "open_model",
    "open_storage",
    "register_store",
    "replace_file",
    "save_checkpoint",
    "save_model",
    "settings_for",
    "temporary_file",
    "without_outer_slashes",
    "write_through",
]
