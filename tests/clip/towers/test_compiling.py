import copy
import logging

import pytest
import torch
from torch.testing import assert_close

from clipself_d2.clip import load_tower
from clipself_d2.clip.towers.compiling import Compiler


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def count(graphs):
    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    return backend


def compiled(mode, backend, depth=2):
    torch.manual_seed(0)
    tower = load_tower("ViT-Ti-8-emoji")
    blocks = tower.visual.transformer.resblocks
    del blocks[2:]
    blocks.extend(copy.deepcopy(blocks[0]) for _ in range(depth - 2))
    tower.read_visual()
    tower.freeze(-1)
    tower.set_compile(mode)
    tower.compiler = Compiler(backend)
    return tower


def pictures(side=32, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def gradients(tower, images):
    loss = tower.forward_dense(images).embedding[:, :, 0].sum()
    loss.backward()
    return {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("depth", [pytest.param(2, marks=pytest.mark.slow), 10])
def test_there_are_as_many_graphs_as_forms_of_blocks_at_any_depth(depth):
    graphs = []
    tower = compiled("blocks", count(graphs), depth=depth)
    gradients(tower, pictures())
    # Global attention, and the last block's values alone.
    assert len(graphs) == 2
    with torch.no_grad():
        tower.forward_image(pictures(64))
    assert len(graphs) == 3
    for _ in range(2):
        gradients(tower, pictures())
        with torch.no_grad():
            tower.forward_image(pictures(64))
    assert len(graphs) == 3
    assert not tower.compiler.failed


def test_windows_are_a_form_more():
    graphs = []
    tower = compiled("blocks", count(graphs), depth=4)
    tower.set_attention(window_size=2, global_blocks=[2])
    gradients(tower, pictures())
    assert len(graphs) == 3


@pytest.mark.slow
def test_many_sizes_of_pictures_make_one_graph_more_of_each_form():
    graphs = []
    tower = compiled("blocks", count(graphs))
    for side in (32, 40, 48, 56, 64):
        gradients(tower, pictures(side))
    assert len(graphs) == 4


def test_the_step_is_one_graph():
    graphs = []
    tower = compiled("step", count(graphs))
    for _ in range(2):
        gradients(tower, pictures())
    assert len(graphs) == 1


def prepared(mode, change, backend="eager"):
    tower = compiled(mode, backend)
    tower.checkpointing = change == "checkpointing"
    tower.set_attention(window_size=2 if change == "windows" else 0, global_blocks=[1])
    tower.precision = "bf16" if change == "bf16" else "fp32"
    return tower


@pytest.mark.parametrize("mode", ["blocks", "step"])
@pytest.mark.parametrize("change", ["checkpointing", "windows"])
def test_compiled_gradients_are_those_of_the_plain_tower(mode, change):
    expected = gradients(prepared("off", change), pictures())
    tower = prepared(mode, change)
    got = gradients(tower, pictures())
    assert not tower.compiler.failed
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("mode", ["blocks", "step"])
@pytest.mark.parametrize("change", ["checkpointing", "windows", "bf16"])
def test_so_are_those_of_a_compiled_backward_pass(mode, change, backend):
    expected = gradients(prepared("off", change), pictures())
    tower = prepared(mode, change, backend)
    got = gradients(tower, pictures())
    assert not tower.compiler.failed
    for name, gradient in got.items():
        cosine = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert cosine > (0.999 if change == "bf16" else 0.999999), f"{name}: {cosine}"


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("openai", "off"), ("openai", "blocks"), ("eva", "off")]
    + [pytest.param("eva", "blocks", marks=pytest.mark.slow)],
)
def test_gradients_in_bf16_point_where_those_in_fp32_do(new_clip, kind, mode):
    torch.manual_seed(0)
    tower = new_clip("eva").tower if kind == "eva" else load_tower("ViT-Ti-8-emoji")
    tower.freeze(-1)
    narrow = copy.deepcopy(tower)
    expected = gradients(tower, pictures())
    narrow.precision, narrow.compiler = "bf16", Compiler("eager")
    narrow.set_compile(mode)
    got = gradients(narrow, pictures())
    assert not narrow.compiler.failed
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        cosine = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.99, f"{name}: {cosine}"


def test_a_failing_compiler_is_said_once(caplog):
    def broken(_graph, _inputs):
        raise RuntimeError("no compiler here")

    tower = compiled("blocks", broken)
    with caplog.at_level(logging.WARNING):
        got = [gradients(tower, pictures()) for _ in range(2)]
    assert len([r for r in caplog.records if "blocks run without it" in r.message]) == 1
    assert "no compiler here" in caplog.text
    expected = gradients(compiled("off", "eager"), pictures())
    assert all(torch.equal(got[0][name], expected[name]) for name in expected)


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="compile mode is 'all', expected one of"):
        load_tower("ViT-Ti-8-emoji").set_compile("all")
