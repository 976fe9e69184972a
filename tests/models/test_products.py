"""Products of float32 matrices by oneDNN: torch's numbers, on the CPUs on which it is the faster."""

import copy
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from ppo_helpers import LORA, make_trainer, watch_approx_kl
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm_rlhf.models import products
from llm_rlhf.models.lora_sums import sum_in_products
from llm_rlhf.models.products import Linear, is_linear, multiply_faster, onednn_is_faster, product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture
def by_onednn(monkeypatch) -> None:
    """Products of every size, on every CPU."""
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(products, "LARGE", 1)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs_onednn
def test_a_product_by_hand(by_onednn) -> None:
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([10.0, 20.0])
    with Seen() as seen:
        assert product(x, weight, bias).tolist() == [[21.0, 37.0]]
        assert product(x, weight.t()).tolist() == [[13.0, 16.0]]
        assert product(x[0], weight).tolist() == [11.0, 17.0]
        assert product(x[:0], weight).shape == (0, 2)  # which is torch's own
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            product(x, weight[:, :1])
    assert seen.names[ONEDNN] == 3


@needs_onednn
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (random(3, 5, 8), random(4, 8)),
        (random(5, 3, 8).transpose(0, 1), random(4, 8)),
        (random(8, 6).t(), random(8, 4).t()),
        (random(6, 16)[:, ::2], random(4, 16)[:, 3:11]),
        (random(9, 8)[2:7], random(6, 8)[1:]),
        (random(1, 8).expand(6, 8), random(4, 1).expand(4, 8)),
        (torch.tensor(2.0).expand(6, 8), random(4, 8)),
        (random(70, 130), random(90, 130)),
    ],
    ids=["rows of rows", "turned rows", "turned", "slices", "offsets", "one row", "one number", "blocks and a rest"],
)
def test_of_every_layout_in_memory(by_onednn, x, weight) -> None:
    found, exact = product(x, weight), x.double() @ weight.double().t()
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)  # sums of up to 130 numbers of order 1


@needs_onednn
def test_of_every_layout_of_a_bias(by_onednn) -> None:
    x, weight = random(6, 8), random(4, 8)
    for bias in (random(4), random(8)[::2], random(1).expand(4), random(9)[3:7]):
        exact = x.double() @ weight.double().t() + bias.double()
        torch.testing.assert_close(product(x, weight, bias).double(), exact, rtol=0, atol=1e-5)  # of order 1


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize(("kept", "most"), [(None, 60), (1024, None)])
def test_of_shapes_that_were_met_few_are_kept(kept, most) -> None:
    """MiB of a process that multiplies rows of 300 lengths; torch's and oneDNN's own numbers are what it would take."""
    program = """
import os, torch
from llm_rlhf.models import products

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

products.ONEDNN_IS_FASTER = True
layer = torch.nn.Linear(512, 512)
products.multiply_faster(layer)
with torch.no_grad():
    layer(torch.randn(100, 512))
    before = resident()
    for rows in range(100, 400):
        layer(torch.randn(rows, 512))
print(resident() - before)
"""
    environment = {key: of for key, of in os.environ.items() if key not in products.CACHE_CAPACITIES}
    if kept is not None:
        environment |= dict.fromkeys(products.CACHE_CAPACITIES, str(kept))
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    grown = float(ended.stdout)
    assert grown < most if most is not None else grown > 120


@needs_onednn
@pytest.mark.parametrize("trained", ["all", "weight", "input"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_learns_what_torch_s_does(by_onednn, trained, bias) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(12, 7, bias=bias)
    plain.requires_grad_(trained != "input")
    if bias and trained == "weight":
        plain.bias.requires_grad_(False)
    mine = copy.deepcopy(plain)
    multiply_faster(mine)
    x = random(3, 5, 12)
    with Seen() as seen:
        found = learned(mine, x.clone().requires_grad_(trained != "weight"))
    wanted = learned(copy.deepcopy(plain).double(), x.double().requires_grad_(trained != "weight"))
    assert seen.names[ONEDNN] == (3 if trained == "all" else 2)
    assert found.keys() == wanted.keys()
    for name, of_torch in wanted.items():  # float32's sums of some ten numbers against float64's
        torch.testing.assert_close(found[name].double(), of_torch, rtol=1e-5, atol=1e-5, msg=name)


@needs_onednn
def test_what_a_layer_gives_may_be_written_into(by_onednn) -> None:
    """As trl 1.12's PPO does, into a part of a head's logits."""
    torch.manual_seed(0)
    adapted = lora.Linear(nn.Linear(8, 4), "one", LoraConfig(init_lora_weights=False), r=2)
    adapted.base_layer.requires_grad_(False)
    sum_in_products(adapted)
    for layer in (Linear(8, 4), Linear(8, 4, bias=False), adapted):
        for length in (3, 1):  # of many rows a LoRA layer adds matrix and update first
            x, like = random(2, length, 8).requires_grad_(), random(2, length, 8).requires_grad_()
            out = layer(x)
            out[:, -1:] *= 2
            out.sum().backward()
            once_or_twice = torch.tensor([1.0] * (length - 1) + [2.0])[:, None]
            (layer(like) * once_or_twice).sum().backward()
            torch.testing.assert_close(x.grad, like.grad)


def by_length(prompts, completions, **_) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def learned(layer: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    out = layer(x)
    (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
    named = {"x": x, **dict(layer.named_parameters())}
    return {"out": out.detach()} | {name: each.grad for name, each in named.items() if each.grad is not None}


@needs_onednn
def test_what_is_no_large_product_in_float32_stays_torch_s(monkeypatch) -> None:
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", True)
    wide = Linear(1024, 64, bias=False)
    x = random(32, 1024)  # 2 ** 21 multiplications
    with Seen() as seen, torch.no_grad():
        assert torch.equal(wide(x), product(x, wide.weight))
    assert seen.names[ONEDNN] == 2
    with Seen() as seen, torch.no_grad():
        assert torch.equal(wide(x[:31]), nn.functional.linear(x[:31], wide.weight))
        with torch.autocast("cpu", torch.bfloat16):
            assert wide(x).dtype == torch.bfloat16
        assert wide.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        assert wide.double()(x.double()).dtype == torch.float64
    assert seen.names[ONEDNN] == 0


@needs_onednn
@pytest.mark.slow
def test_what_is_compiled_is_torch_s_own(by_onednn) -> None:
    """Whose compiler takes the operator for weights alone that it has packed itself."""
    layer, x = Linear(256, 256), random(9, 256).requires_grad_()
    compiled = torch.compile(layer, dynamic=True)
    compiled(x).sum().backward()  # below, 256 numbers of order 1 that two libraries add up
    of_compiled, x.grad = x.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(of_compiled, x.grad, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("cpu", "kernels", "has", "faster"),
    [
        ("AMD EPYC 9554 64-Core Processor", "AVX512", {"mkldnn", "mkl"}, True),
        ("AMD EPYC 7543 32-Core Processor", "AVX2", {"mkldnn", "mkl"}, False),
        ("AMD EPYC 9554 64-Core Processor", "DEFAULT", {"mkldnn", "mkl"}, False),
        ("AMD EPYC 9554 64-Core Processor", "AVX512", {"mkldnn"}, False),
        ("AMD EPYC 9554 64-Core Processor", "AVX512", {"mkl"}, False),
        ("Intel(R) Xeon(R) Platinum 8480+", "AVX512", {"mkldnn", "mkl"}, False),
        (None, "AVX512", {"mkldnn", "mkl"}, False),
    ],
)
def test_on_which_cpus(monkeypatch, cpu, kernels, has, faster) -> None:
    for library in ("mkldnn", "mkl"):
        monkeypatch.setattr(getattr(torch.backends, library), "is_available", lambda library=library: library in has)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if cpu is None else {"cpu_name": cpu})
    assert onednn_is_faster() is faster


def test_torch_says_what_cpu_it_is() -> None:
    """In a function that the choice stands on; "Intel" is not in it where this CPU is another's."""
    assert torch.cpu.get_capabilities()["cpu_name"]


def test_layers_of_other_classes_stay_what_they_are(monkeypatch) -> None:
    class Router(nn.Linear):
        pass

    model = nn.ModuleDict({"plain": nn.Linear(2, 2), "router": Router(2, 2), "norm": nn.LayerNorm(2)})
    names, printed = [*model.state_dict()], str(model)
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", False)
    multiply_faster(model)
    assert type(model["plain"]) is nn.Linear
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", True)
    multiply_faster(model)
    assert [type(layer) for layer in model.values()] == [Linear, Router, nn.LayerNorm]
    assert [is_linear(layer) for layer in model.values()] == [True, False, False]
    assert [*model.state_dict()] == names
    assert str(model) == printed


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize("lora", [LORA, False], ids=["LoRA", "whole model"])
def test_ppo_by_it_starts_at_ratio_1_and_kl_0_and_learns_the_same(
    by_onednn, base_folder, reward_folder, tmp_path, monkeypatch, lora
) -> None:
    def trained(name: str) -> tuple[list[float], list[dict[str, float]]]:
        scored = {"reward": reward_folder} if lora else {"reward": None, "reward_funcs": by_length}
        trainer = make_trainer(
            base_folder, tmp_path / name, lora=lora, perturb=False, num_ppo_epochs=2, logging_steps=1, seed=1, **scored
        )
        kinds = {type(m) for model in filter(None, (trainer.model, trainer.ref_model)) for m in model.modules()}
        assert (Linear in kinds, nn.Linear in kinds) == (products.ONEDNN_IS_FASTER, not products.ONEDNN_IS_FASTER)
        kls = watch_approx_kl(trainer)
        with Seen() as seen:
            trainer.train()
        assert bool(seen.names[ONEDNN]) == products.ONEDNN_IS_FASTER
        return kls, [line for line in trainer.state.log_history if "objective/kl" in line]

    kls, lines = trained("onednn")
    assert kls[0] == 0.0 < kls[1]
    assert lines[0]["objective/kl"] == 0.0 < lines[-1]["objective/kl"]
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", False)
    others, _ = trained("torch")
    assert kls[1] == pytest.approx(others[1], rel=1e-3)  # a step of 1e-3 a weight, of gradients that 1e-6 is noise of
