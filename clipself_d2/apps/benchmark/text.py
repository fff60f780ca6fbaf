"""Text embeddings in batches against one by one, and the ROI head over its number of classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from clipself_d2.apps.benchmark.measure import (
    MIB,
    BenchmarkOptions,
    Row,
    Step,
    median_seconds,
    peak_memory,
)
from clipself_d2.clip import load_clip
from clipself_d2.detection import OpenVocabFastRCNNOutputLayers
from clipself_d2.detection.output_layers import CLIP_FIELD
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.embeddings import SentenceEncoder

TEMPLATES = "vild"
# Regions of an image in training and at test time.
TRAIN_REGIONS, TEST_REGIONS = 512, 1000
_WIDTH = 512
_IMAGE_SIDE = 1024.0


class OneByOne:
    """A sentence encoder that gives the text tower a sentence at a time.

    Args:
        encoder: The text tower.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: T texts.

        Returns:
            (T, D) unit-norm float32.
        """
        return torch.cat([self.encoder.encode([text]) for text in texts])


def benchmark_text(options: BenchmarkOptions) -> list[Row]:
    """Build the prompted text embeddings of a vocabulary.

    Args:
        options: Model, device, number of classes.

    Returns:
        A row for each way; ratios compare with one by one, above 1 we are faster.

    Raises:
        ValueError: If there is no class.
    """
    if options.text_classes < 1:
        raise ValueError(f"--classes is {options.text_classes}; it must be at least 1")
    torch.manual_seed(0)
    encoder = load_clip(options.model).text.to(options.device)
    names = [f"thing number {number}" for number in range(options.text_classes)]
    vocabulary = Vocabulary.from_names(names)
    built: dict[str, TextEmbeddings] = {}

    def step(name: str, source: SentenceEncoder) -> Step:
        def run() -> None:
            built[name] = TextEmbeddings.build(
                source, vocabulary, clip=options.model, templates=TEMPLATES
            )

        return run

    sources: dict[str, SentenceEncoder] = {"one by one": OneByOne(encoder), "ours": encoder}
    steps = {name: step(name, source) for name, source in sources.items()}
    seconds = median_seconds(steps, options.repeats, options.device)
    reference = built["one by one"].embeddings_KD
    prompts = 63 * (options.text_classes + 1)
    return [
        {
            "variant": name,
            "classes": options.text_classes,
            # The background is prompted too.
            "prompts": prompts,
            "prompts/s": prompts / seconds[name],
            "speed ratio": seconds["one by one"] / seconds[name],
            "largest difference": float((built[name].embeddings_KD - reference).abs().max()),
        }
        for name in steps
    ]


def make_predictor(num_classes: int, device: str) -> OpenVocabFastRCNNOutputLayers:
    """Make F-ViT's predictor over random classes, three quarters of them base.

    Args:
        num_classes: K.
        device: cpu or cuda.

    Returns:
        The predictor.
    """
    torch.manual_seed(0)
    classifier = TextClassifier(
        embeddings_KD=torch.randn(num_classes, _WIDTH),
        base_mask_K=torch.arange(num_classes) % 4 != 3,
        background=torch.randn(_WIDTH),
    )
    predictor = OpenVocabFastRCNNOutputLayers(
        ShapeSpec(channels=_WIDTH),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        classifier=classifier,
        test_score_thresh=0.01,
        test_nms_thresh=0.4,
        test_topk_per_image=100,
    )
    return predictor.to(device)


def make_regions(count: int, device: str) -> tuple[Tensor, Instances]:
    """Make the regions of one image.

    Args:
        count: R.
        device: cpu or cuda.

    Returns:
        Features (R, 512), and proposals with all fields of training and test; every fourth is an
        object, of class 0.
    """
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=rng) * 0.7 * _IMAGE_SIDE
    side = 8 + torch.rand(count, 2, generator=rng) * 0.3 * _IMAGE_SIDE
    boxes = Boxes(torch.cat([corner, corner + side], dim=1).to(device))
    proposals = Instances((int(_IMAGE_SIDE), int(_IMAGE_SIDE)))
    proposals.proposal_boxes = proposals.gt_boxes = boxes
    proposals.set(CLIP_FIELD, F.normalize(torch.randn(count, _WIDTH, generator=rng)).to(device))
    return torch.randn(count, _WIDTH, generator=rng).to(device), proposals


def build_head(num_classes: int, device: str, training: bool) -> Step:
    """Make a run of the predictor.

    Args:
        num_classes: K.
        device: cpu or cuda.
        training: Forward, losses and backward of 512 regions; else forward, fused scores and NMS
            of 1000.

    Returns:
        Function that runs it.
    """
    predictor = make_predictor(num_classes, device)
    features, proposals = make_regions(TRAIN_REGIONS if training else TEST_REGIONS, device)
    is_object = torch.arange(len(proposals), device=device) % 4 == 0
    proposals.gt_classes = torch.where(is_object, 0, num_classes)

    def train() -> None:
        features.requires_grad_()
        with EventStorage():
            losses = predictor.losses(predictor(features), [proposals])
        torch.stack(list(losses.values())).sum().backward()
        predictor.zero_grad()
        features.grad = None

    @torch.no_grad()
    def test() -> None:
        predictor.inference(predictor(features), [proposals])

    return train if training else test


def benchmark_classes(options: BenchmarkOptions) -> list[Row]:
    """Run the ROI head's predictor with more and more classes.

    Args:
        options: Class counts and device.

    Returns:
        A row for each task and class count; ``time ratio`` compares with the fewest classes.
    """
    rows: list[Row] = []
    for training in (True, False):
        steps = {str(k): build_head(k, options.device, training) for k in options.class_counts}
        seconds = median_seconds(steps, options.repeats, options.device)
        first = seconds[str(options.class_counts[0])]
        for count in options.class_counts:
            memory = peak_memory(
                build_head,
                count,
                options.device,
                training,
                device=options.device,
                isolated=options.isolated,
            )
            rows.append(
                {
                    "task": "training" if training else "inference",
                    "regions": TRAIN_REGIONS if training else TEST_REGIONS,
                    "classes": count,
                    "ms": 1000 * seconds[str(count)],
                    "time ratio": seconds[str(count)] / first,
                    "step MiB": memory.step / MIB,
                }
            )
    return rows
