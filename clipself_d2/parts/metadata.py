"""What a data set's metadata says, also where only its annotations say it."""

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from clipself_d2.parts.annotation_files import read_instances

# Evaluator types of ``register_coco_instances`` and ``register_lvis_instances``.
DETECTRON2_TYPES = ("coco", "lvis")

# Types of data sets whose classes are things and then stuff, in contiguous numbers.
SEGMENT_TYPES = ("ov_panoptic", "ov_sem_seg")


def metadata_with_classes(name: str) -> Metadata:
    """Look up the metadata of a data set, with its classes where it has some."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and name in DatasetCatalog.list():
        # Detectron2's COCO loader learns the classes only when it reads the annotations.
        check_detectron2_file(name, quiet=True)
        DatasetCatalog.get(name)
    return metadata


def check_detectron2_file(name: str, *, quiet: bool = False) -> None:
    """Check the annotation file of a data set whose loader is Detectron2's, as ours check theirs.

    Others are passed over; ``quiet`` says nothing of what is mended, as it will be said later.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file and metadata.get("evaluator_type") in DETECTRON2_TYPES:
        read_instances(
            PathManager.get_local_path(json_file),
            remedy=f"correct it, or json_file in the metadata of {name}",
            quiet=quiet,
        )
