"""The formats of directories that are one checkpoint, in the order in which they are asked."""

from __future__ import annotations

from ckptool.formats.base import FolderFormat
from ckptool.formats.dcp import DcpFolder
from ckptool.formats.folders import OpenFile
from ckptool.formats.lightning_folders import LightningFolder
from ckptool.formats.model_folders import ModelFolders
from ckptool.formats.ranked.dcp_safetensors import DcpSafetensorsFolder
from ckptool.formats.ranked.deepspeed import DeepSpeedFolder
from ckptool.formats.ranked.rank_files import RankFolder
from ckptool.formats.ranked.universal import UniversalFolder
from ckptool.formats.sharded import ShardFolder
from ckptool.formats.trainer_folders import TrainerFolders
from ckptool.formats.unpacked_zip import UnpackedZip


def folder_formats(open_file: OpenFile) -> tuple[FolderFormat, ...]:
    """Return the formats; ``open_file`` opens a file in a directory."""
    of_ranks: tuple[FolderFormat, ...] = (
        LightningFolder(open_file), DcpFolder(), UniversalFolder(open_file),
        DeepSpeedFolder(open_file), RankFolder(open_file), DcpSafetensorsFolder(open_file),
    )  # fmt: skip
    return (
        TrainerFolders(open_file, of_ranks), *of_ranks, UnpackedZip(), ShardFolder(open_file),
        ModelFolders(open_file),
    )  # fmt: skip
