"""The parts of a RegionCLIP pre-training from a config."""

from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor

from clipself_d2.clip import ClipModel, VisionTower, load_clip
from clipself_d2.distillation.build import towers_from_config
from clipself_d2.distillation.regions import RegionProposer
from clipself_d2.parts.frozen_proposals import FrozenProposals, build_frozen_proposals
from clipself_d2.parts.image_tower import load_whole_clip
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.concepts import ConceptPool


def regionclip_parts(cfg: CfgNode) -> dict[str, object]:
    """Build towers, text tower, concept tables and the source of regions.

    Args:
        cfg: The whole config.

    Returns:
        Arguments of ``RegionCLIPPretrainer`` but its switches. The text tower is that of
        MODEL.CLIP.PRETRAINED, the student that of MODEL.CLIP.WEIGHTS or else of PRETRAINED; the
        teacher is that of MODEL.REGIONCLIP.TEACHER_NAME and TEACHER_PRETRAINED, each of which may
        be left out where it is that of MODEL.CLIP.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a name, a tag or a file does not fit.
    """
    vocabulary = _concepts(cfg)
    model = load_whole_clip(cfg)
    embeddings = read_text_embeddings(cfg, vocabulary)
    embeddings.check(model.text.embed_dim)
    concepts = embeddings.embeddings_KD
    teacher, teacher_concepts = _teacher(cfg, model, vocabulary, concepts)
    options, proposer = cfg.INPUT.REGIONS, None
    if options.SOURCE == "rpn":
        on_crops = cfg.MODEL.REGIONCLIP.TEACHER_REGIONS == "crop"
        proposer = RegionProposer(
            _proposal_network(cfg),
            max_regions=options.MAX_BOXES,
            crop_enlarge=options.CROP_ENLARGE if on_crops else None,
            # A negative SEED asks Detectron2 for a random one; draws of ours take none below 0.
            seed=max(cfg.SEED, 0),
        )
    return {
        "towers": towers_from_config(cfg, original=model.tower, teacher=teacher),
        "text": model.text,
        "concepts_CD": concepts,
        "teacher_concepts_CD": teacher_concepts,
        "proposer": proposer,
    }


def _teacher(
    cfg: CfgNode, model: ClipModel, vocabulary: Vocabulary, concepts: Tensor
) -> tuple[VisionTower, Tensor]:
    """The teacher's tower, and its embeddings of the concepts."""
    clip, keys = cfg.MODEL.CLIP, cfg.MODEL.REGIONCLIP
    name = keys.TEACHER_NAME or clip.NAME
    weights = keys.TEACHER_PRETRAINED or (clip.PRETRAINED if name == clip.NAME else "")
    if (name, weights) == (clip.NAME, clip.PRETRAINED):
        return model.tower, concepts
    if clip.PRETRAINED and not weights:
        raise ValueError(
            f"MODEL.REGIONCLIP.TEACHER_NAME is {name!r} without weights, and a random teacher "
            "teaches nothing; set TEACHER_PRETRAINED to a pretrained tag or a file"
        )
    other = load_clip(name, weights or None, precision=clip.PRECISION)
    options = cfg.MODEL.VOCABULARY
    built = TextEmbeddings.load_or_build(
        vocabulary,
        clip=name,
        weights=weights or None,
        templates=options.TEMPLATES,
        cache_dir=options.CACHE_DIR or None,
    )
    return other.tower, built.embeddings_KD


def _proposal_network(cfg: CfgNode) -> FrozenProposals:
    keys = cfg.MODEL.FROZEN_RPN
    if not keys.CONFIG or not keys.WEIGHTS:
        raise ValueError(
            "INPUT.REGIONS.SOURCE rpn needs MODEL.FROZEN_RPN.CONFIG and WEIGHTS, the "
            "config and the checkpoint of a trained proposal network"
        )
    return build_frozen_proposals(cfg)


def _concepts(cfg: CfgNode) -> Vocabulary:
    file = cfg.MODEL.REGIONCLIP.CONCEPTS
    if not file:
        raise ValueError(
            "MODEL.REGIONCLIP.CONCEPTS is empty; write a concept pool with "
            "tools/build_concept_pool.py and name it there"
        )
    return ConceptPool.load(Path(file).expanduser()).vocabulary
