"""Files of weights: from the hub, from a folder, checked and hashed."""

from sthist._weights.files import Files, find, load_into, obtain, read, read_file, sha256, sha256_of

__all__ = ["Files", "find", "load_into", "obtain", "read", "read_file", "sha256", "sha256_of"]
