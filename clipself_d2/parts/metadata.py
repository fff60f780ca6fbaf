"""What a data set's metadata says, also where only its annotations say it."""

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

# Types of data sets whose classes are things and then stuff, in contiguous numbers.
SEGMENT_TYPES = ("ov_panoptic", "ov_sem_seg")


def metadata_with_classes(name: str) -> Metadata:
    """Look up the metadata of a data set, with its classes where it has some.

    Args:
        name: Registered name.

    Returns:
        The metadata; ``thing_classes`` is missing where the data set has no things.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and name in DatasetCatalog.list():
        # Detectron2's COCO loader learns the classes only when it reads the annotations.
        DatasetCatalog.get(name)
    return metadata
