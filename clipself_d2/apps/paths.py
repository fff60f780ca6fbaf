"""Paths that users type; they are read where torch is not imported."""

from clipself_d2_cli.flags import add_data_root, data_root, user_path

__all__ = ["add_data_root", "data_root", "user_path"]
