"""Storage: objects by `bucket/key` in an S3 store or a folder, a file cache in front, and whole models on top."""

from mlpkit.storage.callers import settings_for
from mlpkit.storage.model_dir import Manifest, ModelDir, delete_model, open_model, save_model
from mlpkit.storage.paths import ObjectStat, checked_key, checked_name, checked_path
from mlpkit.storage.storage import Storage, open_storage

__all__ = [
    "Manifest",
    "ModelDir",
    "ObjectStat",
    "Storage",
    "checked_key",
    "checked_name",
    "checked_path",
    "delete_model",
    "open_model",
    "open_storage",
    "save_model",
    "settings_for",
]
