import pytest
import torch
from detectron2.data import MetadataCatalog

from clipself_d2.distillation.build import text_from_config, towers_from_config
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


def test_the_student_starts_as_the_teacher(emoji_cfg) -> None:
    towers = towers_from_config(emoji_cfg("clipself_patches"))
    student, teacher = towers.student.state_dict(), towers.teacher.state_dict()
    assert all(torch.equal(student[key], teacher[key]) for key in teacher)
    assert towers.student is not towers.teacher


def test_the_student_has_weights_of_its_own(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("clipself_patches")
    state = towers_from_config(cfg).student.state_dict()
    torch.save({"model": {key: value + 1 for key, value in state.items()}}, tmp_path / "s.pth")
    cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "s.pth")
    towers = towers_from_config(cfg)
    key = "visual.class_embedding"
    torch.testing.assert_close(towers.student.state_dict()[key], state[key] + 1)
    assert not torch.equal(towers.teacher.state_dict()[key], towers.student.state_dict()[key])


def test_texts_are_those_of_the_training_set(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "DATASETS.TRAIN", ("emoji_ov_train",))
    text, scale = text_from_config(cfg)
    assert text.shape == (80, 128)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(80))
    assert scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_a_file_of_another_clip_is_refused(emoji_cfg, tmp_path) -> None:
    names = MetadataCatalog.get("emoji_ov_train").thing_classes
    rows = torch.nn.functional.normalize(torch.randn(len(names), 128), dim=1)
    made = TextEmbeddings(Vocabulary.from_names(names), rows, None, "RN50", "single")
    made.save(tmp_path / "text.pt")
    cfg = emoji_cfg("clipself_patches", "DATASETS.TRAIN", ("emoji_ov_train",))
    cfg.MODEL.VOCABULARY.EMBEDDINGS = str(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="come from RN50"):
        text_from_config(cfg)


def test_windows_change_the_students_dense_map_and_nothing_else(emoji_cfg) -> None:
    torch.manual_seed(0)
    towers = towers_from_config(emoji_cfg("clipself_patches", "MODEL.CLIP.WINDOW_SIZE", 4))
    student, teacher = towers.student, towers.teacher
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        dense = [tower.forward_dense(images).embedding for tower in (student, teacher)]
        whole = [tower.forward_image(images) for tower in (student, teacher)]
    assert float((dense[0] - dense[1]).abs().max()) > 1e-3
    torch.testing.assert_close(whole[0], whole[1])


def test_activation_checkpointing_gives_the_same_gradients(emoji_cfg) -> None:
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        cfg = emoji_cfg("clipself_patches", "MODEL.CLIP.ACTIVATION_CHECKPOINTING", flag)
        student = towers_from_config(cfg).student.train()
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(1, 3, 64, 64, generator=generator)
        target = torch.randn(1, 128, 8, 8, generator=generator)
        (student.forward_dense(images).embedding * target).sum().backward()
        gradients.append(student.block_modules[0].mlp.c_fc.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
