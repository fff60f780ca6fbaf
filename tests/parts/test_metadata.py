from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.parts.metadata import metadata_with_classes


def test_classes_that_only_the_annotations_tell_are_read_once() -> None:
    reads = []

    def load() -> list[dict[str, object]]:
        reads.append(1)
        MetadataCatalog.get("late").thing_classes = ["saw"]
        return []

    DatasetCatalog.register("late", load)
    try:
        assert metadata_with_classes("late").thing_classes == ["saw"]
        assert metadata_with_classes("late").thing_classes == ["saw"]
        assert len(reads) == 1
    finally:
        DatasetCatalog.remove("late")
        MetadataCatalog.remove("late")
