"""Package metadata; ``tools/setup_env.sh`` installs it together with torch and Detectron2."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# Lower bounds only, but where a newer release is known not to work; tools/constraints.txt pins.
# Detectron2 and lvis are left to tools/setup_env.sh: the first is not on PyPI under its own name,
# the second asks for opencv-python, whose libGL a bare machine does not have.
REQUIREMENTS = [
    "torch>=2.6",
    "torchvision>=0.21",
    "open_clip_torch>=3.3,<4",
    "timm>=1.0.17",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "yacs>=0.1.8",
    "tabulate>=0.9",
    "cloudpickle>=2.0",
    "tensorboard>=2.12",
    "termcolor>=1.1",
    "packaging>=21",
    "matplotlib>=3.7",
    "opencv-python-headless>=4.8",
    "pycocotools>=2.0.7",
    "scipy>=1.10",
    "safetensors>=0.4",
    "numpy>=1.24",
    "pillow>=10.0",
    "tqdm>=4.65",
    "setuptools<81",  # Detectron2 imports pkg_resources, which later releases do not have
]

EXTRAS = {
    "lvis": ["lvis>=0.5.3"],
    "demo": ["gradio>=4.0"],
    "export": ["onnx>=1.16", "onnxscript>=0.1", "onnxruntime>=1.18"],
    # tools/label.py --format yolo or voc; earlier releases ask for opencv-python and its libGL.
    "supervision": ["supervision>=0.31"],
    "video": ["av>=14.2"],  # drawn videos as H.264
    "wandb": ["wandb>=0.19"],
    "faster": ["faster-coco-eval>=1.8"],  # TEST.BACKEND faster_coco_eval
    "fast": ["hotcoco>=1.3"],  # COCO and LVIS scores in seconds; pycocotools and lvis without it
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],
    # Words of all SigLIPs and other models with a tokenizer of Hugging Face.
    "transformers": ["transformers[sentencepiece]>=4.40"],
    "concepts": ["spacy>=3.7"],
    "dev": [
        "av>=14.2",
        "hotcoco>=1.3",
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
        "mypy>=1.14",
    ],
}


def read_version() -> str:
    """Read ``__version__`` without importing the package, which needs torch and Detectron2.

    Returns:
        The version string.

    Raises:
        RuntimeError: If the package does not state a version.
    """
    source = (ROOT / "clipself_d2" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('clipself_d2/__init__.py has no line __version__ = "..."')
    return found.group(1)


def read_long_description() -> str:
    """Read the README, if this tree has one.

    Returns:
        Its text, or "".
    """
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


class BuildWithRecipes(build_py):
    """Put what lies beside the package in a checkout into the wheel: recipes and commands."""

    def run(self) -> None:
        """Build, then copy; an editable installation finds the folders of the checkout."""
        super().run()
        if self.editable_mode:
            return
        build = Path(self.build_lib)
        target = build / "clipself_d2" / "model_zoo" / "configs"
        no_cache = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "configs", target, ignore=no_cache, dirs_exist_ok=True)
        scripts = build / "clipself_d2_cli" / "scripts"
        scripts.mkdir(exist_ok=True)
        for folder in ("tools", "datasets"):
            for path in (ROOT / folder).glob("*.py"):
                shutil.copy2(path, scripts)
        # Sprites and their licences; pictures made of them lie in the same folder of a checkout.
        for path in (ROOT / "datasets" / "emoji").rglob("*"):
            if path.suffix in (".webp", ".md") or path.name == "index.json":
                sprite = build / "clipself_d2" / "data" / path.relative_to(ROOT)
                sprite.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, sprite)


setup(
    name="clipself_d2",
    version=read_version(),
    description="Open-vocabulary dense prediction with CLIP, as a Detectron2 plugin",
    long_description=read_long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["clipself_d2", "clipself_d2.*", "clipself_d2_cli"]),
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["clipself-d2 = clipself_d2_cli.main:main"]},
    package_data={
        "clipself_d2": [
            "py.typed",
            "clip/model_configs/*",
            "clip/pretrained/*",
            "data/datasets/*.json",
            "model_zoo/checkpoints/*/*.pth",
        ],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
