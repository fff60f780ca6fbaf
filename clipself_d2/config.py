"""Every yaml key this plugin adds to Detectron2's defaults."""

import logging

from detectron2.config import CfgNode as CN
from detectron2.config import defaults
from detectron2.solver.build import GradientClipType

logger = logging.getLogger(__name__)


def add_clipself_config(cfg: CN) -> None:
    """Add the plugin's keys to a Detectron2 config; no default of Detectron2 is changed.

    Args:
        cfg: A config made by ``detectron2.config.get_cfg()``; changed in place. One that has the
            keys keeps their values.
    """
    if "CLIP_FPN" in cfg.MODEL:
        return
    _add_clip(cfg)
    _add_pyramid(cfg)
    _add_vocabulary(cfg)
    _add_open_vocab(cfg)
    _add_distill(cfg)
    _add_vfm(cfg)
    _add_regionclip(cfg)
    _add_frozen_rpn(cfg)
    _add_cris(cfg)
    _add_ov_panoptic(cfg)
    _add_cat_seg(cfg)
    _add_regions(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    _add_watching(cfg)


def extend_defaults() -> None:
    """Let ``detectron2.config.get_cfg()`` return the plugin's keys beside Detectron2's.

    Detectron2's own tools make their config with it and leave no room for ``add_clipself_config``.
    Values of Detectron2 are not touched. Its loop learns the name of our clipping, which it would
    else refuse.
    """
    add_clipself_config(defaults._C)
    setattr(GradientClipType, "_missing_", classmethod(_clip_type))  # noqa: B010


def _clip_type(kind: type[GradientClipType], name: object) -> GradientClipType | None:
    """Stand for CLIP_TYPE full_model in Detectron2's own loop, which clips no norm of a model."""
    if name != "full_model":
        return None
    logger.warning(
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model is that of this project's tools/train_net.py; "
        "Detectron2's own loop clips the norm of each parameter by itself instead, and trains "
        "otherwise"
    )
    return kind.NORM


def _add_clip(cfg: CN) -> None:
    """CLIP: every method."""
    cfg.MODEL.CLIP = CN()
    # Model name as open_clip knows it, for example ViT-B-16-quickgelu or EVA02-B-16.
    cfg.MODEL.CLIP.NAME = "ViT-B-16-quickgelu"
    # The whole CLIP: an open_clip pretrained tag, hf-hub:org/name or a file (docs/weights.md). It
    # gives the text embeddings, the distillation's teacher and, where WEIGHTS is empty, the image
    # tower. Empty: random weights.
    cfg.MODEL.CLIP.PRETRAINED = ""
    # A file or hf-hub: id with an image tower that replaces that of PRETRAINED, such as a distilled
    # student.
    cfg.MODEL.CLIP.WEIGHTS = ""
    # Number type of the tower's arithmetic: fp32, bf16, fp16 (train with
    # SOLVER.AMP.ENABLED, which scales the loss), or auto (bf16 where the device has it). In a
    # training with SOLVER.AMP.ENABLED fp32 is float16, and bf16 is the type of the whole model.
    cfg.MODEL.CLIP.PRECISION = "fp32"
    # Whether blocks are computed again in the backward pass instead of kept, to save memory.
    cfg.MODEL.CLIP.ACTIVATION_CHECKPOINTING = False
    # What torch.compile makes one graph of: off; blocks, each form of a transformer block; step,
    # all blocks and what stands behind them, on a GPU with recorded launches (docs/performance.md).
    cfg.MODEL.CLIP.COMPILE = "off"
    # Number of last blocks of the image tower that are trained, stages of a ResNet; 0 freezes the
    # whole tower, -1 trains it with patch embedding (stem), positions and norms.
    cfg.MODEL.CLIP.TRAINABLE_BLOCKS = 0
    # The same of the text tower, where a model can train it.
    cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS = 0
    # What of the trained blocks of both towers learns: all, attention, or query_value (the weights
    # of the query and value projections, as in CAT-Seg and DeCLIP's detectors;
    # docs/dense_forms.md).
    cfg.MODEL.CLIP.TRAINABLE_PARTS = "all"
    # Probability of stochastic depth in the last block; it grows from 0 in the first one.
    cfg.MODEL.CLIP.DROP_PATH = 0.0
    # What the last block does in dense features (docs/dense_forms.md): clipself, attention, catseg,
    # clipself3, maskclip, sclip, clearclip, naclip, proxyclip, declip_qq, declip_csa or denserc.
    cfg.MODEL.CLIP.DENSE_FORM = "clipself"
    # Whether weights that were trained in another dense form may be run in this one.
    cfg.MODEL.CLIP.ANY_FORM = False
    # Side of the windows of the dense path's attention, cells; 0: every block is global.
    cfg.MODEL.CLIP.WINDOW_SIZE = 0
    # Blocks that stay global where there are windows, 0-based; [] takes the last of every quarter.
    cfg.MODEL.CLIP.GLOBAL_BLOCKS = []
    # Blocks whose outputs feed the pyramid, four 0-based indices; [] takes the quarter points.
    cfg.MODEL.CLIP.TAP_BLOCKS = []


def _add_pyramid(cfg: CN) -> None:
    """Pyramids over a CLIP ViT: detectors."""
    # Channels and norm are Detectron2's MODEL.FPN.OUT_CHANNELS and NORM, which is that of
    # RPN.HEAD_NAME NormRPNHead too.
    cfg.MODEL.CLIP_FPN = CN()
    # Levels of the pyramid, in pixels per cell; ascending powers of two. Level s is p<log2 s>.
    cfg.MODEL.CLIP_FPN.STRIDES = [4, 8, 16, 32]
    # Side of the square to which images are padded with the pixel mean, px; 0: no square.
    cfg.MODEL.CLIP_FPN.SQUARE_SIZE = 0


def _add_vocabulary(cfg: CN) -> None:
    """Words: detectors, region-text distillation and evaluation."""
    cfg.MODEL.VOCABULARY = CN()
    # Data set whose metadata names the classes of training; empty: the first of DATASETS.TRAIN.
    cfg.MODEL.VOCABULARY.DATASET = ""
    # Prompt set: single, vild (its 63 prompts), imagenet80, regionclip81, emoji or catseg.
    cfg.MODEL.VOCABULARY.TEMPLATES = "vild"
    # Prebuilt text embeddings of the training vocabulary (in RegionCLIP's pre-training the concept
    # pool), used in tests of the same classes too; empty: built and cached.
    cfg.MODEL.VOCABULARY.EMBEDDINGS = ""
    # Folder of cached text embeddings; empty: nothing is cached.
    cfg.MODEL.VOCABULARY.CACHE_DIR = ""


def _add_open_vocab(cfg: CN) -> None:
    """Open-vocabulary detectors: F-ViT, RegionCLIP's transfer, Cascade, RetinaNet, FCOS."""
    cfg.MODEL.OPEN_VOCAB = CN()
    # Background row of the classifier: text (the prompted word background), learned or zero.
    cfg.MODEL.OPEN_VOCAB.BACKGROUND = "text"
    # Weight of background regions in the classification loss.
    cfg.MODEL.OPEN_VOCAB.BACKGROUND_WEIGHT = 0.6
    # Multiplier of the detector's cosine; the start value where it is learned.
    cfg.MODEL.OPEN_VOCAB.SCALE = 50.0
    # Whether that multiplier is learned.
    cfg.MODEL.OPEN_VOCAB.LEARN_SCALE = True
    # Multiplier of CLIP's cosine at test time.
    cfg.MODEL.OPEN_VOCAB.CLIP_SCALE = 75.0
    # Exponent of CLIP's score for base classes and background; 0 is the detector alone.
    cfg.MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA = 0.1
    # Exponent of CLIP's score for novel classes; 1 is CLIP alone.
    cfg.MODEL.OPEN_VOCAB.ENSEMBLE_BETA = 0.8
    # Exponent of the classification loss's focal factor (1 - p)^gamma; 0 leaves it out.
    cfg.MODEL.OPEN_VOCAB.FOCAL_GAMMA = 0.0
    # Whether that loss is divided by the sum of the regions' weights instead of their number.
    cfg.MODEL.OPEN_VOCAB.NORMALIZE_WEIGHTS = False
    # Whether detections have the regressor's deltas; False takes the proposals as they are.
    cfg.MODEL.OPEN_VOCAB.REFINE_BOXES = True
    # What class scores are geometrically averaged with: sigmoid (of the proposal's
    # objectness logit), raw_logit (the logit itself, as published for RegionCLIP: scores may exceed
    # 1, and proposals with a negative logit are lost), or empty for none.
    cfg.MODEL.OPEN_VOCAB.RPN_SCORE = ""
    # Share of CLIP in the objectness of proposals in tests, where PROPOSAL_GENERATOR.NAME is
    # BlendedRPN; 0 is the network's alone.
    cfg.MODEL.OPEN_VOCAB.CLIP_OBJECTNESS = 0.5
    # Decay of soft-NMS: gaussian, linear (above ROI_HEADS.NMS_THRESH_TEST), or empty for NMS.
    cfg.MODEL.OPEN_VOCAB.SOFT_NMS = ""


def _add_distill(cfg: CN) -> None:
    """CLIPSelf and the region-text baseline."""
    cfg.MODEL.DISTILL = CN()
    # Whether the student's image is padded to a square, as published, or only to the largest
    # height and width of the batch.
    cfg.MODEL.DISTILL.PAD_TO_SQUARE = True
    # Losses of TermDistiller: rows of a loss (crop, affinity, map, vocabulary or label), its weight
    # and its options, as docs/distillers.md lists them.
    cfg.MODEL.DISTILL.TERMS = [{"loss": "crop"}]
    # Classes that a batch is scored against by RegionTextDistiller, its own included.
    cfg.MODEL.DISTILL.SAMPLED_CLASSES = 100
    # Share of the student in the saved weights, the rest is the teacher's; 1 saves the student.
    cfg.MODEL.DISTILL.STUDENT_SHARE = 1.0


def _add_vfm(cfg: CN) -> None:
    """Vision foundation model: teacher of TermDistiller."""
    cfg.MODEL.VFM = CN()
    # dinov2_s, dinov2_b, dinov2_l (with registers), dino_b8, dino_b16, sam_b, sam_l, tiny, or a
    # name of timm.
    cfg.MODEL.VFM.NAME = "dinov2_b"
    # pretrained (timm fetches them), a file of timm's or of Meta's, or empty: random weights.
    cfg.MODEL.VFM.WEIGHTS = ""


def _add_regionclip(cfg: CN) -> None:
    """RegionCLIP's pre-training."""
    cfg.MODEL.REGIONCLIP = CN()
    # Concept pool of the pre-training, its vocabulary: a file of noun,count lines, of
    # tools/build_concept_pool.py.
    cfg.MODEL.REGIONCLIP.CONCEPTS = ""
    # Name of the teacher's CLIP; empty: that of MODEL.CLIP.
    cfg.MODEL.REGIONCLIP.TEACHER_NAME = ""
    # Pretrained tag or file of the teacher's CLIP; empty: that of MODEL.CLIP, if of one name.
    cfg.MODEL.REGIONCLIP.TEACHER_PRETRAINED = ""
    # What the teacher sees of a region: roi (pooled from the picture, as published) or crop.
    cfg.MODEL.REGIONCLIP.TEACHER_REGIONS = "roi"
    # Weights of the losses: distillation of the teacher's distribution over the concepts, contrast
    # of regions with the concepts of the batch, contrast of pictures with captions; 0: off.
    cfg.MODEL.REGIONCLIP.LOSS_WEIGHTS = [1.0, 1.0, 1.0]


def _add_cris(cfg: CN) -> None:
    """CRIS."""
    cfg.MODEL.CRIS = CN()
    # Tokens of a sentence, start and end included; 17 for RefCOCO and RefCOCO+, 22 for RefCOCOg.
    cfg.MODEL.CRIS.WORD_LEN = 17
    # Channels of the neck's three levels, fine to coarse; the middle one is the decoder's width.
    cfg.MODEL.CRIS.FPN_OUT = [256, 512, 1024]
    # Layers of the vision-language decoder; 0 leaves it out, the paper's ablation.
    cfg.MODEL.CRIS.NUM_LAYERS = 3
    # Hidden channels of the decoder's feed-forward networks.
    cfg.MODEL.CRIS.DIM_FFN = 2048
    # Share of the decoder's channels dropped in training.
    cfg.MODEL.CRIS.DROPOUT = 0.1
    # Side of the sentence's kernel over the pixels: 3 as released, 1 the paper's dot product, 0 a
    # plain classifier without the sentence, the paper's ablation.
    cfg.MODEL.CRIS.KERNEL_SIZE = 3
    # Norm of neck and projector: SyncBN, BN (two pairs a process at least) or GN (any batch; the
    # batch norms of a ResNet tower then keep their statistics).
    cfg.MODEL.CRIS.NORM = "SyncBN"


def _add_ov_panoptic(cfg: CN) -> None:
    """OpenVocabPanoptic, beside MODEL.SEM_SEG_HEAD and MODEL.OPEN_VOCAB."""
    cfg.MODEL.OV_PANOPTIC = CN()
    # Layers of multi-scale deformable attention in the pixel decoder; 0 is a plain pyramid.
    cfg.MODEL.OV_PANOPTIC.PIXEL_ATTENTION_LAYERS = 0
    # Most masks of a picture.
    cfg.MODEL.OV_PANOPTIC.NUM_QUERIES = 250
    # Layers of the masked-attention decoder.
    cfg.MODEL.OV_PANOPTIC.NUM_LAYERS = 9
    # Points of every mask in loss and assignment.
    cfg.MODEL.OV_PANOPTIC.NUM_POINTS = 12544
    # What CLIP sees of a mask: hard (mean of the dense map inside), soft (mean weighted by the
    # mask's probability) or tokens (class tokens that attend to the mask's patches).
    cfg.MODEL.OV_PANOPTIC.POOLING = "hard"
    # Exponent of CLIP's certainty in a mask's objectness, in [0, 1]; 0 leaves it out.
    cfg.MODEL.OV_PANOPTIC.RECOGNITION = 0.0
    # What inference returns: some of panoptic, semantic (K maps of the picture's size) and
    # instance.
    cfg.MODEL.OV_PANOPTIC.TASKS = ["panoptic", "semantic", "instance"]


def _add_cat_seg(cfg: CN) -> None:
    """CAT-Seg; TRAINABLE_BLOCKS, TEXT_TRAINABLE_BLOCKS and TRAINABLE_PARTS choose what learns."""
    cfg.MODEL.CAT_SEG = CN()
    # Side of the square to which pictures and windows are resized for the tower, px; a multiple of
    # the patch.
    cfg.MODEL.CAT_SEG.CLIP_SIZE = 384
    # Side of the windows in tests, px; that of the training crop.
    cfg.MODEL.CAT_SEG.WINDOW_SIZE = 384
    # Side of the square that test pictures are squashed to and cut from, px; 0: the whole picture
    # is the only window.
    cfg.MODEL.CAT_SEG.CANVAS_SIZE = 640
    # Channels of the cost embedding, a multiple of 32; guides and decoder have fixed shares of it.
    cfg.MODEL.CAT_SEG.DIM = 128
    # Layers of spatial and class aggregation.
    cfg.MODEL.CAT_SEG.NUM_LAYERS = 2
    # Side of the windows of the spatial aggregation, cells.
    cfg.MODEL.CAT_SEG.ATTENTION_WINDOW = 12
    # Side of the squares of cells averaged before the class aggregation in training; tests average
    # none.
    cfg.MODEL.CAT_SEG.POOLING = 2
    # Most classes that are aggregated at once, those of the highest cosine anywhere in the picture;
    # the others get probability 0. Shorter lists are filled up with a learned class.
    cfg.MODEL.CAT_SEG.PAD_LEN = 256
    # The same limit in tests alone, to save time; 0: PAD_LEN. One of at least as many classes as
    # there are changes nothing.
    cfg.MODEL.CAT_SEG.SHORTLIST = 0
    # Whether pixels without a label are left out of the loss; False counts them as negatives of
    # every class, as published.
    cfg.MODEL.CAT_SEG.MASK_IGNORED = False


def _add_frozen_rpn(cfg: CN) -> None:
    """Frozen proposal network: RegionCLIP's pre-training, transfer and zero-shot inference."""
    cfg.MODEL.FROZEN_RPN = CN()
    # Config of a trained proposal network, which gives the boxes of the pre-training with
    # INPUT.REGIONS.SOURCE rpn, and of META_ARCHITECTURE OfflineProposalRCNN with
    # PROPOSAL_GENERATOR.NAME FrozenRPN (AnnotatedBoxes takes the ground truth; Detectron2's are
    # trained with the detector).
    cfg.MODEL.FROZEN_RPN.CONFIG = ""
    # Its checkpoint; may be empty where MODEL.WEIGHTS holds the network too.
    cfg.MODEL.FROZEN_RPN.WEIGHTS = ""


def _add_regions(cfg: CN) -> None:
    """Regions of distillation and pre-training."""
    cfg.INPUT.REGIONS = CN()
    # Source of the student's regions: grid (m x n patches), proposals (from a file), both, random
    # (boxes of any place and size), labels (the annotations of DATASETS.TRAIN with their classes,
    # for RegionTextDistiller), or rpn (a frozen network at work, for RegionCLIPPretrainer).
    cfg.INPUT.REGIONS.SOURCE = "grid"
    # COCO-format file of class-agnostic boxes for SOURCE proposals and both.
    cfg.INPUT.REGIONS.PROPOSAL_FILE = ""
    # Longest sides of the student's image, px, one of which is drawn for every iteration; region
    # features are scored at the largest.
    cfg.INPUT.REGIONS.IMAGE_SIZES = (1024,)
    # Most regions of one image, of each source.
    cfg.INPUT.REGIONS.MAX_BOXES = 20
    # Square roots of the least and largest area of a proposal, px of the original image.
    cfg.INPUT.REGIONS.SIZE_RANGE = [8, 1024]
    # Factor by which the teacher's crop of a proposal exceeds the proposal.
    cfg.INPUT.REGIONS.CROP_ENLARGE = 1.5
    # Whether the student's image is sent as it was read and resized on the device, as the crops
    # are on a GPU: faster loading, and values that differ from PIL's now and then. Distillation and
    # RegionCLIP read it; detectors, segmentation and CRIS resize in their loaders.
    cfg.INPUT.REGIONS.RESIZE_ON_DEVICE = False
    # Whether upright and broad pictures are kept apart, so that without MODEL.DISTILL.PAD_TO_SQUARE
    # less of a batch is padding; the order of the pictures is then another one.
    cfg.INPUT.REGIONS.GROUP_ASPECTS = False


def _add_input(cfg: CN) -> None:
    """Pictures of detectors and of CRIS."""
    # Side of the image after large-scale jitter of 0.1 to 2, px; 0 keeps Detectron2's
    # augmentations.
    cfg.INPUT.LSJ_SIZE = 0
    # Largest share of one class in the crop of INPUT.CROP, which then follows the resizing, with
    # jitter of colours after it: the augmentation of semantic segmentation (1: any crop); 0 keeps
    # Detectron2's augmentations.
    cfg.INPUT.SEMANTIC_MAX_AREA = 0.0
    # Side of the canvas that a referring expression's picture is letterboxed to, px.
    cfg.INPUT.REFER_SIZE = 416


def _add_solver(cfg: CN) -> None:
    """Training."""
    # Optimizer: SGD as in Detectron2, AdamW, or Adam.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Decay rates of the two moments of Adam and AdamW.
    cfg.SOLVER.ADAM_BETAS = [0.9, 0.999]
    # Number that Adam and AdamW add to the root of the second moment.
    cfg.SOLVER.ADAM_EPS = 1e-8
    # Factor of BASE_LR for the towers of CLIP, image and text, position tables excepted.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Factor of the learning rate from one block of the CLIP tower to the one before; 1: none.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Parts into which a process works through its share of IMS_PER_BATCH, one after another, to
    # save memory. The gradients are those of the whole batch, RegionCLIP's contrasts included, but
    # for batch norms in training (MODEL.CRIS.NORM BN and SyncBN), which see one part at a time,
    # and for the padding of pictures of several sizes.
    cfg.SOLVER.ACCUMULATION_STEPS = 1


def _add_test(cfg: CN) -> None:
    """Tests."""
    # Most pictures that a detector looks at together, in each process; those of a batch have one
    # size, so that detections stay those of the pictures one by one.
    cfg.TEST.IMS_PER_BATCH = 1
    # COCO and LVIS scoring: hotcoco (fast), reference (pycocotools and lvis), or for COCO alone
    # faster_coco_eval.
    cfg.TEST.BACKEND = "hotcoco"
    # Whether LVIS sets are scored by Fixed AP too: the best 10,000 detections of every class, no
    # limit an image. TEST.DETECTIONS_PER_IMAGE, which limits the model, must then be raised.
    cfg.TEST.FIXED_AP = False
    # Whether classes are prompted by a synonym (class_synonyms of the metadata), where they have
    # one, instead of by their name.
    cfg.TEST.SYNONYMS = False
    # Which synonym: first, index:N (from 0; the last where there are fewer), mean (the embeddings
    # of all), mean_with_name, or random:SEED. One that another class is called by is passed over.
    # all scores the names and every index beside them, with mean, spread, worst and drop.
    cfg.TEST.SYNONYM_MODE = "first"
    # Pictures of the first test set whose predictions and heat maps TensorBoard shows, every
    # TEST.EVAL_PERIOD iterations of a detector's training; 0 for none.
    cfg.TEST.PICTURES = 0


def _add_watching(cfg: CN) -> None:
    """Watching runs."""
    # Project of Weights & Biases that is given what TensorBoard is given; empty for none. It needs
    # the extra wandb, and WANDB_MODE=offline where there is no network.
    cfg.WANDB_PROJECT = ""
