"""At least 150 bad inputs: values, words, flags and files, each by the command that reads it.

In arguments and texts ``{data}`` is the folder of data sets, ``{case}`` that of the case and
``{root}`` that of the project.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BadInput:
    """One bad input.

    Attributes:
        kind: What it is, such as "config value".
        name: Which it is, in a few words.
        command: A key of ``COMMANDS``.
        arguments: What is added to the command, words between spaces.
        files: Text, or bytes, by path below the folder of the case.
        taken: Why it is right to go on with it; empty where it must be refused.
        word: What the answer must name.
    """

    kind: str
    name: str
    command: str
    arguments: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    taken: str = ""
    word: str = ""


_YAML = "--config-file {root}/configs/emoji/"
_SMALL = (
    "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1 DATALOADER.NUM_WORKERS 0 DATASETS.TEST () "
    "OUTPUT_DIR {case}/out"
)
_LAZY = "--config-file {root}/configs/plug_in/retinanet_lazy.py"
# Tool, its flags, and the keys at the end, which the case's own follow.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "distill": ("distill_train_net", f"{_YAML}clipself_patches.yaml", _SMALL),
    "detector": ("train_net", f"{_YAML}fvit_untouched.yaml", _SMALL),
    "score": ("train_net", f"--eval-only {_YAML}fvit_untouched.yaml", _SMALL),
    "train": ("train_net", "", ""),
    "lazy": (
        "lazyconfig_train_net",
        _LAZY,
        "train.max_iter=1 train.output_dir={case}/out dataloader.train.num_workers=0",
    ),
    "lazy_file": ("lazyconfig_train_net", "", ""),
    "proposals": (
        "make_proposals",
        f"{_YAML}rpn.yaml --dataset emoji_train_images --output {{case}}/p.json",
        "",
    ),
    "demo": ("demo", f"{_YAML}fvit_untouched.yaml --output {{case}}/demo", ""),
    "web": ("web_demo", f"{_YAML}fvit_untouched.yaml", ""),
    "embeddings": ("build_text_embeddings", "--output {case}/e.pt --templates emoji", ""),
    "alignment": (
        "analyze_region_alignment",
        "accuracy --dataset emoji_panoptic_val --towers ViT-Ti-8-emoji:emoji --output {case}/a",
        "",
    ),
    "benchmark": ("benchmark", "distill --model ViT-Ti-8-emoji", ""),
    "concepts": ("build_concept_pool", "--output {case}/c.txt", ""),
    "convert": ("convert_checkpoint", "--output {case}/w.pt", ""),
    "centre": ("score_centre_box", "", ""),
    "quickstart": ("quickstart", "--output {case}/q --data-root {data}", ""),
}

_NUMBERS = {
    "distill": """
        SOLVER.MAX_ITER -5;SOLVER.MAX_ITER 0;SOLVER.IMS_PER_BATCH 0;SOLVER.IMS_PER_BATCH -2
        SOLVER.CHECKPOINT_PERIOD 0;SOLVER.CHECKPOINT_PERIOD -1;SOLVER.ACCUMULATION_STEPS 0
        SOLVER.BASE_LR 0.0;SOLVER.BASE_LR -1e-3;SOLVER.BASE_LR nan;SOLVER.BASE_LR 1e400
        SOLVER.WEIGHT_DECAY -1.0;SOLVER.WARMUP_ITERS -1;SOLVER.WARMUP_FACTOR 2.0
        SOLVER.ADAM_BETAS [0.9,1.0];SOLVER.ADAM_BETAS [0.9];SOLVER.ADAM_EPS 0.0
        SOLVER.CLIP_GRADIENTS.CLIP_VALUE -1.0;SOLVER.LAYER_DECAY 0.0
        SOLVER.BACKBONE_MULTIPLIER -1.0;TEST.EVAL_PERIOD -1;DATALOADER.NUM_WORKERS -1
        INPUT.REGIONS.MAX_BOXES 0;INPUT.REGIONS.MAX_BOXES -3
        INPUT.REGIONS.IMAGE_SIZES (0,);INPUT.REGIONS.IMAGE_SIZES ();INPUT.REGIONS.IMAGE_SIZES (-8,)
        INPUT.REGIONS.IMAGE_SIZES (99999999,);INPUT.REGIONS.SIZE_RANGE [9,2]
        INPUT.REGIONS.SIZE_RANGE [9];INPUT.REGIONS.CROP_ENLARGE 0.0;INPUT.REGIONS.CROP_ENLARGE inf
        MODEL.DISTILL.STUDENT_SHARE 1.5;MODEL.DISTILL.STUDENT_SHARE nan
        MODEL.DISTILL.SAMPLED_CLASSES 0;SEED -7
        SEED 99999999999;MODEL.CLIP.DROP_PATH 1.0;MODEL.CLIP.TRAINABLE_BLOCKS -2
        MODEL.CLIP.TRAINABLE_BLOCKS 99;MODEL.CLIP.WINDOW_SIZE -1;MODEL.PIXEL_STD [0,1,1]
        MODEL.PIXEL_MEAN [nan,1,1];MODEL.CRIS.WORD_LEN 0;MODEL.CRIS.DROPOUT 1.0""",
    "detector": """
        SOLVER.IMS_PER_BATCH 0;SOLVER.MAX_ITER 0;INPUT.MIN_SIZE_TRAIN (0,);INPUT.MIN_SIZE_TRAIN ()
        INPUT.MAX_SIZE_TRAIN 0;INPUT.LSJ_SIZE -1;TEST.DETECTIONS_PER_IMAGE 0
        MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA 1.2;MODEL.OPEN_VOCAB.ENSEMBLE_BETA nan
        MODEL.OPEN_VOCAB.SCALE 0.0;MODEL.OPEN_VOCAB.FOCAL_GAMMA -1.0
        MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 0;MODEL.RPN.POST_NMS_TOPK_TRAIN 0
        MODEL.ROI_HEADS.SCORE_THRESH_TEST 2.0;MODEL.ROI_HEADS.POSITIVE_FRACTION -0.1
        MODEL.FPN.OUT_CHANNELS 0;MODEL.CLIP_FPN.STRIDES [3,8];MODEL.CLIP_FPN.STRIDES []
        MODEL.ROI_HEADS.IN_FEATURES ["p9"];MODEL.RPN.NMS_THRESH -1.0""",
}
_WORDS = {
    "distill": """
        SOLVER.OPTIMIZER Adamw;SOLVER.LR_SCHEDULER_NAME WarmupCosine;MODEL.DEVICE banana
        MODEL.DEVICE meta;MODEL.META_ARCHITECTURE Nope;MODEL.META_ARCHITECTURE CLIPSelfDistiler
        MODEL.CLIP.NAME ViT-B-61;MODEL.CLIP.PRETRAINED emojis;MODEL.CLIP.PRECISION fp8
        MODEL.CLIP.DENSE_FORM clipslef;INPUT.REGIONS.SOURCE grids;INPUT.FORMAT RBG
        INPUT.RANDOM_FLIP horizontl;SOLVER.CLIP_GRADIENTS.CLIP_TYPE full
        MODEL.VOCABULARY.TEMPLATES vlid;TEST.BACKEND hotcocoa""",
    "detector": """
        MODEL.META_ARCHITECTURE GeneralisedRCNN;MODEL.BACKBONE.NAME build_clip_vit_fpn
        MODEL.ROI_HEADS.NAME OpenVocabROIHead;MODEL.PROPOSAL_GENERATOR.NAME RPM
        MODEL.RPN.HEAD_NAME StandardRPNHeed;MODEL.OPEN_VOCAB.BACKGROUND txt
        MODEL.OPEN_VOCAB.SOFT_NMS gausian;MODEL.OPEN_VOCAB.RPN_SCORE sigmoids
        MODEL.CLIP.TAP_BLOCKS [2,99];MODEL.ANCHOR_GENERATOR.SIZES [];MODEL.RPN.IN_FEATURES ["p3"]
        MODEL.FPN.NORM GroupNorm;MODEL.ROI_BOX_HEAD.NAME FastRCNNHead""",
}
_KEYS = """
    MODEL.CLIP.NAMES x;MODEL.CLIP x;SOLVER.MAXITER 5;SOLVER.MAX_ITER;SOLVER.MAX_ITER ten
    SOLVER.MAX_ITER 1.5;--num-gpus 1;DATASETS.TRAIN emoji_ov_train;DATASETS.TEST [3]
    SOLVER.STEPS (1,"a");OUTPUT_DIR /proc/none;OUTPUT_DIR /dev/null"""
_DATASETS = """
    DATASETS.TRAIN ();DATASETS.TRAIN ("emoji_ov_trian",);DATASETS.TEST ("emoji_ov_vla",)
    DATASETS.TRAIN ("",);DATASETS.TRAIN ("coco_jsn:a:b",);DATASETS.TRAIN ("coco_json:a",)
    DATASETS.TRAIN ("coco_json:none.json:{data}",);DATASETS.TRAIN ("images:none",)
    DATASETS.TRAIN ("images:{case}",);DATASETS.TRAIN ("webdataset:",)
    DATASETS.TRAIN ("webdataset:none.tar",);DATASETS.TRAIN ("captions:none.json:{data}",)
    DATASETS.TRAIN ("coco_images:none.json:{data}",);DATASETS.TRAIN ("lvis_v1_train",)
    DATASETS.TRAIN ("emoji_refer_train",);MODEL.VOCABULARY.DATASET nowhere"""
_FLAGS = {
    "distill": "--num-gpus -2;--num-gpus two;--num-machines 0;--machine-rank -1;--machine-rank 3;"
    "--eval-olny;--num-gpus 1.5",
    "proposals": "--min-score nan;--min-score 2;--max-per-image 0;--dataset emoji_train_image",
    "demo": "--confidence-threshold nan;--confidence-threshold -1;--batch-size 0;--max-frames -1;"
    "--input {case}/none.jpg;--input {case};--vocabulary nowhere --input {data};--webcam x",
    "web": "--port 0;--port 99999;--confidence-threshold 7",
    "embeddings": "--clip ViT-Ti-8-emoji --vocabulary nowhere;"
    "--clip ViT-Ti-8 --vocabulary emoji;--clip ViT-Ti-8-emoji --vocabulary {case}/none.txt;"
    "--clip ViT-Ti-8-emoji --vocabulary emoji --batch-size 0;"
    "--clip ViT-Ti-8-emoji --vocabulary emoji --device banana",
    "alignment": "--sizes 0;--sizes -5;--sizes 64 --limit -1;--sizes 64 --precision fp8;"
    "--sizes 64 --device cuda:99;--sizes 64 --batch-size 0;--sizes 64 --dataset emoji_ov_val",
    "benchmark": "--repeats 0;--size 0;--scale nan;--scale 0;--classes -1;--device banana",
    "concepts": "--captions emoji --min-count -1;--captions none.json;--captions emoji --parser x",
    "convert": "--input {case}/none.pt --to open_clip;--input {case} --to d2;--input x --to y",
    "centre": "--train nowhere --test emoji_refer_val;--train emoji_ov_val --test emoji_ov_val",
    "quickstart": "--train 0;--val -1;--seed -1;--rpn-iterations 0;--regions grids",
    "train": ";--config-file none.yaml;--config-file {case};--config-file {root}/setup.py",
}
_LAZY_OVERRIDES = """
    train.max_iter=-5;train.max_iter=0;train.max_iter=ten;train.max_itr=5;train.device=banana
    train.eval_period=-1;train.checkpointer.period=0;dataloader.train.total_batch_size=0
    dataloader.train.num_workers=-1;optimizer.lr=-1.0;optimizer.lr=nan;train.max_iter
    dataloader.train.dataset.names=emoji_ov_trian;dataloader.test.dataset.names=emoji_ov_vla
    train.init_checkpoint=none.pth;train.output_dir=/proc/none;model.num_classes=0
    model.backbone.strides=[3,5,7];model.backbone.backbone.tap_blocks=[2,4,99]
    train={;model.head_in_features=["p9"];dataloader.evaluator.backend=hotcocoa
    model.backbone.backbone.tower.name=ViT-Ti-9-emoji;train.seed=-9"""
_BAD_YAML: dict[str, str | bytes] = {
    "empty": "",
    "a list": "- 1\n- 2\n",
    "words": "hello",
    "unclosed": "MODEL: {A: [1\n",
    "tab": "MODEL:\n\tMASK_ON: True\n",
    "unknown key": "MODEL:\n  CLIPP:\n    NAME: x\n",
    "null section": "MODEL:\n",
    "base that is not there": "_BASE_: none.yaml\n",
    "base that is itself": "_BASE_: a.yaml\n",
    "binary": bytes(range(256)),
    "section as a number": "MODEL: 3\n",
    "code": "MODEL: !!python/object/apply:os.getcwd []\n",
}
_BAD_LAZY = {
    "empty": "",
    "syntax": "model = (",
    "missing import": "from nowhere import thing\n",
    "unknown name": "model = thing\n",
    "division": "model = 1 / 0\n",
    "half": "model = {}\ntrain = {}\n",
}
_EMPTY = '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}'
_IMAGE = '{"id": 1, "file_name": "a.png", "width": 8, "height": 8}'
_BAD_JSON: dict[str, str | bytes] = {
    "empty file": "",
    "cut": '{"images": [',
    "a list": "[]",
    "null": "null",
    "no categories": '{"images": [], "annotations": []}',
    "no image": _EMPTY,
    "no annotation": f'{{"images": [{_IMAGE}], "annotations": [], '
    '"categories": [{"id": 1, "name": "dog"}]}',
    "a picture that is not there": f'{{"images": [{_IMAGE}], "annotations": [{{"id": 1, '
    '"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}], '
    '"categories": [{"id": 1, "name": "dog"}]}',
    "a box of words": f'{{"images": [{_IMAGE}], "annotations": [{{"id": 1, '
    '"image_id": 1, "category_id": 1, "bbox": ["a", 1, 4, 4], "area": 16, "iscrowd": 0}], '
    '"categories": [{"id": 1, "name": "dog"}]}',
    "binary": bytes(range(256)),
}
# Keys that name a file, and commands that read it.
_FILE_KEYS = (
    ("detector", "MODEL.WEIGHTS", "w.pth", "weights"),
    ("detector", "MODEL.CLIP.WEIGHTS", "w.pt", "weights"),
    ("detector", "MODEL.CLIP.PRETRAINED", "w.safetensors", "weights"),
    ("detector", "MODEL.VOCABULARY.EMBEDDINGS", "e.pt", "text embeddings"),
    ("distill", "INPUT.REGIONS.PROPOSAL_FILE", "p.json", "proposals"),
)
_CONTENTS: dict[str, str | bytes | None] = {
    "missing": None,
    "empty": b"",
    "text": "hello",
    "binary": bytes(range(256)),
}


def cases() -> Iterator[BadInput]:
    """List all bad inputs."""
    for command, rows in _NUMBERS.items():
        for row in _split(rows):
            key = row.split()[0]
            yield BadInput("config value", row, command, row, word=key.rpartition(".")[2])
    for command, rows in _WORDS.items():
        for row in _split(rows):
            yield BadInput("config word", row, command, row)
    for row in _split(_KEYS):
        yield BadInput("config key", row, "distill", row)
    for row in _split(_DATASETS):
        yield BadInput("data set", row, "detector", row)
    for command, text in _FLAGS.items():
        for row in text.split(";"):
            yield BadInput("flag", f"{command} {row}", command, row)
    for row in _split(_LAZY_OVERRIDES):
        yield BadInput("lazy override", row, "lazy", row)
    yield from _file_cases()
    yield from _other_cases()


def _file_cases() -> Iterator[BadInput]:
    for name, text in _BAD_YAML.items():
        arguments = "--config-file {case}/a.yaml OUTPUT_DIR {case}/out"
        yield BadInput("yaml file", name, "train", arguments, {"a.yaml": text})
    for name, source in _BAD_LAZY.items():
        arguments = "--config-file {case}/a.py"
        yield BadInput("lazy file", name, "lazy_file", arguments, {"a.py": source})
    for name, content in _BAD_JSON.items():
        arguments = 'DATASETS.TRAIN ("coco_json:{case}/a.json:{case}",)'
        yield BadInput("annotation file", name, "detector", arguments, {"a.json": content})
    for command, key, file, kind in _FILE_KEYS:
        more = " INPUT.REGIONS.SOURCE proposals" if kind == "proposals" else ""
        for name, given in _CONTENTS.items():
            files = {} if given is None else {file: given}
            arguments = f"{key} {{case}}/{file}{more}"
            yield BadInput(kind, f"{key} {name}", command, arguments, files)
    for name, given in _CONTENTS.items():
        files = {} if given is None else {"a.jpg": given}
        arguments = "--input {case}/a.jpg --custom-vocabulary dog"
        yield BadInput("picture", name, "demo", arguments, files)
        files = {} if given is None else {"v.txt": given}
        arguments = "--clip ViT-Ti-8-emoji --vocabulary {case}/v.txt"
        if name != "text":
            yield BadInput("vocabulary", name, "embeddings", arguments, files)


def _other_cases() -> Iterator[BadInput]:
    diverging = "SOLVER.BASE_LR 1e20 SOLVER.WARMUP_ITERS 0 SOLVER.CLIP_GRADIENTS.ENABLED False"
    yield BadInput(
        "training", "a diverging loss", "detector", f"{diverging} SOLVER.MAX_ITER 6",
        word="SOLVER.BASE_LR",
    )  # fmt: skip
    yield BadInput(
        "config value", "three sizes of a range", "detector",
        "INPUT.MIN_SIZE_TRAIN (96,120,200) INPUT.MIN_SIZE_TRAIN_SAMPLING range",
        word="INPUT.MIN_SIZE_TRAIN",
    )  # fmt: skip
    for row in ('DATASETS.TEST ("emoji_ov_vla",)', "MODEL.WEIGHTS none.pth"):
        yield BadInput("evaluation", row, "score", row, word=row.split()[0])
    yield BadInput(
        "training", "more parts than pictures", "distill", "SOLVER.ACCUMULATION_STEPS 5",
        word="SOLVER.ACCUMULATION_STEPS",
    )  # fmt: skip
    yield BadInput(
        "device", "cuda by the file alone", "train",
        f"--config-file {{case}}/a.yaml {_SMALL}",
        {"a.yaml": "_BASE_: {root}/configs/emoji/fvit_untouched.yaml\nMODEL:\n  DEVICE: cuda\n"},
        taken="the device follows the machine, with a line that says so", word="cpu is used",
    )  # fmt: skip
    yield BadInput(
        "config value", "a random run", "distill", "SEED -1",
        taken="-1 draws a seed, as in Detectron2",
    )  # fmt: skip
    yield BadInput(
        "config value", "all detections", "detector", "TEST.DETECTIONS_PER_IMAGE -1",
        taken="-1 is no limit",
    )  # fmt: skip
    yield BadInput(
        "config value", "classes are counted by the vocabulary", "detector",
        "MODEL.ROI_HEADS.NUM_CLASSES 7",
        taken="the vocabulary counts the classes, with a warning", word="NUM_CLASSES 7 is ignored",
    )  # fmt: skip
    yield BadInput(
        "config value", "mixed precision on a CPU", "detector", "SOLVER.AMP.ENABLED True",
        taken="it is left out with a warning", word="AMP",
    )  # fmt: skip


def _split(rows: str) -> list[str]:
    return [row.strip() for line in rows.splitlines() for row in line.split(";") if row.strip()]
