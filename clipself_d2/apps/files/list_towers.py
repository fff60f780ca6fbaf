"""The page of image towers that ``tools/list_towers.py`` writes."""

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from clipself_d2.clip.catalog import describe, known_models

_HEADER = """# Image towers

Made by `python tools/list_towers.py --output docs/towers.md` with open_clip {version}; do not edit.

Every supported tower has `forward_image`, which is open_clip's embedding of the picture, and
`forward_dense`, a map of unit-norm embeddings with one cell for each patch (ViT) or each square of
32 px (ConvNeXt, ResNet). Pictures may have any size: positions are resized, sides that are no
multiple of the patch are padded at the right and the bottom, and the map has the cells that the
picture touches.

| path | a cell is | the picture is |
|---|---|---|
| class-token ViT | final norm and projection of its patch token | the same of the class token |
| averaging ViT | final norm and head of its patch token | the same of the tokens' average |
| attention-pooled ViT | the pool's value, output projection and MLP, then the head, of its patch \
token: what the pool gives for a sequence of that token alone | the pool over all tokens, then the \
head |
| ConvNeXt | norm and head of its column of the last map | the same of the map's average |
| ResNet | the attention pool with its column of the last stage as the query | the same with the \
columns' average as the query |

`MODEL.CLIP.DENSE_FORM clipself` replaces the attention of the last transformer block by identity
attention, as CLIPSelf does. Only class-token towers leave the patch tokens of their last block
untrained; averaging and attention-pooled towers were trained with that block's attention on every
token, so `attention` is the other natural choice for them. ConvNeXts and ResNets have no such
block.

Windows (`MODEL.CLIP.WINDOW_SIZE`, cells, and `MODEL.CLIP.GLOBAL_BLOCKS`) exist for every ViT. Each
window sees its own patches and the class token; the class token sees all tokens; rotary positions
are those of the whole grid. `GLOBAL_BLOCKS []` leaves the last block of every quarter global.

`forward_regions` (extra class tokens that see one region each) needs a class-token ViT. RegionCLIP
and CRIS read the stages of a ResNet, which are its blocks. Whether weights can be downloaded is
open_clip's business: `open_clip.list_pretrained_tags_by_model(NAME)`.

Where the last column says transformers, words are read by that library of Hugging Face, which
`pip install -e ".[transformers]"` adds: `load_clip` needs it, and text embeddings do. `load_tower`
does without, but for models named after a text tower (roberta, xlm-roberta, mt5, nllb), all of
which is of that library.

| model | dense | how, or why not | patch, px | embedding | native size, px | words |
|---|---|---|---|---|---|---|
"""


def write_towers(names: Sequence[str], output: Path | None) -> None:
    """Describe models of open_clip, all without names, in a file or in the terminal."""
    page = render(names or known_models())
    if output is None:
        sys.stdout.write(page)
    else:
        output.write_text(page)


def render(names: Sequence[str]) -> str:
    """Write the page of towers: Markdown with one row for each, in the order given."""
    rows = []
    for entry in map(describe, names):
        cells = [f"`{entry.name}`", "yes" if entry.supported else "no", entry.note]
        cells += [str(entry.patch_size or ""), str(entry.embed_dim), str(entry.image_size)]
        cells.append("transformers" if entry.needs_transformers else "")
        rows.append(f"| {' | '.join(cells)} |\n")
    version = ".".join(metadata.version("open_clip_torch").split(".")[:2])
    return _HEADER.format(version=version) + "".join(rows)
