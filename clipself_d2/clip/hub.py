"""Students as models of the Hugging Face hub, which open_clip and ``load_clip`` read back."""

import json
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import open_clip
from safetensors.torch import save_file

from clipself_d2.clip.model import ClipModel
from clipself_d2.clip.registry import CONFIG_FOLDER, HUB_CONFIG, HUB_WEIGHTS, project_models

_CARD = """---
library_name: open_clip
tags:
- clip
- clipself_d2
---

# {title}

A CLIP whose image tower was trained for dense features, in open_clip's layout:

```python
from clipself_d2.clip import load_clip

clip = load_clip("hf-hub:ORG/NAME")  # or "local-dir:FOLDER"
dense = clip.tower.forward_dense(images).embedding
```

{rows}
"""


def save_pretrained(
    model: ClipModel, folder: str | Path, *, title: str, card: Mapping[str, object]
) -> Path:
    """Write a CLIP as a folder in the layout of the hub: config, weights and a model card.

    Args:
        model: The CLIP, whose tower may be a student.
        folder: Folder to write; files of the layout that are there are replaced.
        title: Heading of the model card.
        card: What a reader has to know, by name, such as CLIP, form, recipe, data and figures.

    Returns:
        The folder.

    Raises:
        ValueError: If the model's words are those of a file of this project, which no other
            library finds.
    """
    if model.name in project_models():
        raise ValueError(
            f"{model.name} reads words by {CONFIG_FOLDER.name} of this package, which no hub has; "
            "save its weights by tools/convert_checkpoint.py"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tower = model.tower
    # open_clip counts pixels from 0 to 1.
    pixels = {
        "mean": [value / 255 for value in tower.pixel_mean],
        "std": [value / 255 for value in tower.pixel_std],
    }
    config = {"model_cfg": open_clip.get_model_config(model.name), "preprocess_cfg": pixels}
    (folder / HUB_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    # Tensors that share memory are no tensors of safetensors.
    state = {name: value.clone() for name, value in model.open_clip_state_dict().items()}
    save_file(state, folder / HUB_WEIGHTS[0], metadata={"format": "pt"})
    rows = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in card.items())])
    text = _CARD.format(title=title, rows=rows)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def push(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a folder of ``save_pretrained``, with the token of ``hf auth login``.

    The repository org/name is made where it is not there; ``private`` ones are seen by their owner
    alone. Returns the name for ``load_clip``.
    """
    api = huggingface_hub.HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder))
    return f"hf-hub:{repository}"
