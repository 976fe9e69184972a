"""LoRA's update added by the product itself: PEFT's layers, in fewer operations."""

import copy
from collections import Counter

import pytest
import torch
from model_helpers import quantized, wide_llama
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from llm_rlhf.models.base import leave_casts_to_autocast
from llm_rlhf.models.lora_sums import sum_in_products

LAYERS, MAPS = 2, 7  # linear maps in each layer of a Llama
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
UNEVEN = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}  # the update times 1.5


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function is not torch.ops.aten._unsafe_view.default:
            self.seen[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def pair(config, dtype=torch.float32, **options):
    """A model by PEFT's layers, and the same by ours."""
    torch.manual_seed(0)
    plain = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=dtype), LoraConfig(**UNEVEN | options))
    mine = copy.deepcopy(plain)
    sum_in_products(mine)
    return plain, mine


def learned(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    logits.float().log_softmax(-1)[..., 5].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(mine, plain) -> None:
    (logits, gradients), (expected, others) = learned(mine), learned(plain)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)  # float32: a rounding more or less, of order 1
    assert any("lora_B" in name for name in others)
    for name, gradient in others.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_layer_by_hand() -> None:
    layer = lora.Linear(nn.Linear(2, 2, bias=False), "one", LoraConfig(r=2, lora_alpha=1), r=2, lora_alpha=1)
    layer.base_layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    layer.lora_A["one"].weight.data = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    layer.lora_B["one"].weight.data = torch.tensor([[2.0, 1.0], [3.0, 0.0]])
    sum_in_products(layer)
    # W x = (5, 11); A x = (3, 4); B A x = (10, 9), of which alpha / r is half
    assert layer(torch.tensor([[1.0, 2.0]])).tolist() == [[10.0, 15.5]]
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [10.0, 15.5]


def adapted_layer(**options) -> tuple[lora.Linear, torch.Tensor]:
    """A frozen layer of random numbers, (6 to 4), in float64, and a batch for it."""
    torch.manual_seed(0)
    options = {"r": 3, "lora_alpha": 4, "init_lora_weights": False} | options
    layer = lora.Linear(nn.Linear(6, 4), "one", LoraConfig(**options), **options).double()
    layer.base_layer.requires_grad_(False)
    sum_in_products(layer)
    return layer, torch.randn(2, 5, 6, dtype=torch.float64)


def test_gradients_of_a_frozen_layer_by_hand() -> None:
    layer = lora.Linear(nn.Linear(2, 2, bias=False), "one", LoraConfig(r=2, lora_alpha=1), r=2, lora_alpha=1)
    layer.base_layer.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), requires_grad=False)
    layer.lora_A["one"].weight.data = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    layer.lora_B["one"].weight.data = torch.tensor([[2.0, 1.0], [3.0, 0.0]])
    sum_in_products(layer)
    x = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_AdaptedMatrixBackward"
    assert y.tolist() == [[[10.0, 15.5]]]
    y.backward(torch.tensor([[[1.0, 10.0]]]))
    # g B = (32, 1), of which alpha / r is half: (16, .5); g W = (31, 42), and (16, .5) A = (16, 17)
    assert x.grad.tolist() == [[[47.0, 59.0]]]
    assert layer.lora_A["one"].weight.grad.tolist() == [[16.0, 32.0], [0.5, 1.0]]  # (16, .5) times x
    assert layer.lora_B["one"].weight.grad.tolist() == [[1.5, 2.0], [15.0, 20.0]]  # half of g times A x = (3, 4)


@pytest.mark.parametrize("alpha", [3, 4])  # 3 / r is 1
def test_gradients_of_a_frozen_layer_are_those_of_small_differences(alpha) -> None:
    layer, x = adapted_layer(lora_alpha=alpha)
    A, B = layer.lora_A["one"].weight, layer.lora_B["one"].weight
    assert type(layer(x).grad_fn).__name__ == "_AdaptedMatrixBackward"

    def forward(x, A, B):
        return torch.func.functional_call(layer, {"lora_A.one.weight": A, "lora_B.one.weight": B}, (x,))

    assert torch.autograd.gradcheck(
        forward, (x.requires_grad_(), A.detach().requires_grad_(), B.detach().requires_grad_())
    )


def test_learning_computes_to_the_bit_what_scoring_does() -> None:
    """So that a policy that has not moved since has a ratio of 1."""
    for dtype in (torch.float32, torch.bfloat16):
        _, mine = pair(LLAMA, dtype)
        leave_casts_to_autocast(mine)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            learning = mine(input_ids=IDS).logits
            with torch.no_grad():
                assert torch.equal(mine(input_ids=IDS).logits, learning)


def test_layers_that_more_belongs_to_than_a_frozen_matrix_are_called() -> None:
    layer, x = adapted_layer()
    of_matrix = layer(x)
    heard = []
    hook = layer.base_layer.register_forward_hook(lambda *_: heard.append(1))
    torch.testing.assert_close(layer(x), of_matrix)
    assert heard == [1]
    hook.remove()
    own = layer.base_layer.forward
    layer.base_layer.forward = lambda x: 2 * own(x)  # as what moves weights about wraps it
    assert not torch.allclose(layer(x), of_matrix)
    del layer.base_layer.forward
    hook = layer.base_layer.register_full_backward_hook(lambda *_: heard.append(2))
    layer(x.clone().requires_grad_()).sum().backward()
    assert heard == [1, 2]
    hook.remove()
    layer.base_layer.weight.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.base_layer.weight.grad is not None


def test_a_bias_that_is_trained_by_itself_learns() -> None:
    """PEFT's LoraConfig(bias="all") trains it."""
    layer, x = adapted_layer()
    layer.base_layer.bias.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.base_layer.bias.grad.tolist() == [10.0] * 4  # one for each of 2 x 5 rows


def adds_first(layer, x) -> bool:
    """Whether a layer multiplies by the sum of matrix and update, and adds no update to its output."""
    with Operations() as counted, torch.no_grad():
        layer(x)
    return counted.seen["addmm_"] == 0


@pytest.mark.parametrize("alpha", [3, 4])  # 3 / r is 1
def test_many_rows_are_multiplied_by_the_sum_of_matrix_and_update(alpha) -> None:
    wide, _ = adapted_layer(lora_alpha=alpha)
    layer = copy.deepcopy(wide).float()
    x = torch.randn(5, 6)  # 5 rows of 6 + 4 numbers are more than twice 24
    assert adds_first(layer, x)
    assert not adds_first(layer, x[:4])
    found = []
    for each in (layer, wide):
        each.zero_grad()
        rows = x.detach().clone().to(each.base_layer.weight.dtype).requires_grad_()
        out = each(rows)
        assert type(out.grad_fn).__name__ == "_AdaptedMatrixBackward"
        out.backward(torch.arange(20.0).view(5, 4).to(out))
        found.append((out.detach(), rows.grad, each.lora_A["one"].weight.grad, each.lora_B["one"].weight.grad))
    for mine, exact in zip(*found, strict=True):  # float32's sums of some ten numbers against float64's
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(layer(x), found[0][0]), "scoring computes what learning does, to the bit"


def test_what_the_sum_is_for() -> None:
    """float32 on a CPU: in bfloat16 a small update is lost in it, and float64 and other devices were not timed."""
    layer, x = adapted_layer()
    assert not adds_first(layer, x)
    assert adds_first(layer.float(), x.float())
    assert not adds_first(layer.bfloat16(), x.bfloat16())
    leave_casts_to_autocast(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert not adds_first(layer.bfloat16(), x.float())
        assert not adds_first(layer.float(), x.float())
    vector, x = lora.Linear(nn.Linear(6, 1), "one", LoraConfig(), r=3), torch.randn(5, 6)
    vector.base_layer.requires_grad_(False)
    sum_in_products(vector)
    assert not adds_first(vector, x)


def test_an_update_of_zero_leaves_the_sum_the_matrix_to_the_bit() -> None:
    layer, x = adapted_layer(init_lora_weights=True)
    layer, x = layer.float(), x.float()
    assert adds_first(layer, x)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_what_somebody_holds_of_a_base_layer_is_not_written_over() -> None:
    layer, x = adapted_layer()
    held = []
    layer.base_layer.register_forward_hook(lambda _, __, output: held.append(output))
    with torch.no_grad():
        out = layer(x)
        (mine,) = held
        assert torch.equal(mine, torch.nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias))
    assert not torch.equal(out, mine)


def test_nothing_is_computed_for_factors_that_are_frozen() -> None:
    layer, x = adapted_layer()
    counts = []
    for frozen in ([], ["lora_A"], ["lora_A", "lora_B"]):
        for name in frozen:
            getattr(layer, name).requires_grad_(False)
        out = layer(x.clone().requires_grad_()).sum()
        with Operations() as counted:
            out.backward()
        counts.append(counted.seen["mm"])
    assert counts == [4, 3, 2]  # B, A, and of the input the low and the wide; then without A, without both


def test_dropout_drops_of_the_update_alone() -> None:
    layer, x = adapted_layer(lora_dropout=1.0)  # all of it
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.eval()
    assert not torch.equal(layer(x), layer.base_layer(x))


def test_where_activations_are_computed_again_gradients_are_the_same() -> None:
    _, mine = pair(LLAMA)
    _, kept = learned(mine.train())
    mine.enable_input_require_grads()
    mine.gradient_checkpointing_enable({"use_reentrant": False})
    _, again = learned(mine)
    assert kept.keys() == again.keys()
    assert all(torch.equal(gradient, again[name]) for name, gradient in kept.items())


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_outputs_and_gradients_are_peft_s(config) -> None:
    plain, mine = pair(config)
    same(mine, plain)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_of_quantised_layers_too(kind, tmp_path, tokenizer) -> None:
    base = wide_llama(tmp_path, tokenizer)
    torch.manual_seed(0)
    plain = get_peft_model(quantized(base, kind), LoraConfig(**UNEVEN))
    torch.manual_seed(0)
    mine = get_peft_model(quantized(base, kind), LoraConfig(**UNEVEN))
    sum_in_products(mine)
    with Operations() as counted, torch.no_grad():
        mine(input_ids=IDS)
    assert counted.seen["addmm_"] == LAYERS * MAPS
    same(mine, plain)


@pytest.mark.parametrize(("alpha", "scaled"), [(4, 0), (6, 1)])  # 4 / r is 1
def test_it_takes_fewer_operations_a_layer(alpha, scaled) -> None:
    found = []
    for model in pair(LLAMA, torch.bfloat16, lora_alpha=alpha):
        leave_casts_to_autocast(model)
        with torch.autocast("cpu", torch.bfloat16), Operations() as forward:
            logits = model(input_ids=IDS).logits
        with Operations() as backward:
            logits.float().log_softmax(-1)[..., 5].sum().backward()
        found.append((forward.seen, backward.seen))
    (plain, plain_back), (mine, mine_back) = found
    layers = LAYERS * MAPS
    assert plain.total() - mine.total() == 2 * layers
    assert plain["mul"] - mine["mul"] == plain["add"] - mine["add"] == layers
    # Of each layer's product by the scaling, as wide as its output, there are two narrow ones, or none. Gradients of an
    # input by the matrix and by LoRA are not added up but where nothing learns before it: the first layer's three maps.
    summed = layers - 3
    assert plain_back["mul"] - mine_back["mul"] == layers
    assert mine_back["mul_"] - plain_back["mul_"] == 2 * scaled * layers
    assert plain_back["add"] + plain_back["add_"] - mine_back["add"] - mine_back["add_"] == summed
    assert plain_back.total() - mine_back.total() == layers - 2 * scaled * layers + summed


def test_in_bfloat16_it_rounds_once_where_peft_rounds_three_times() -> None:
    torch.manual_seed(0)
    options = {"r": 16, "lora_alpha": 24, "init_lora_weights": False}
    plain = lora.Linear(nn.Linear(32, 64).bfloat16(), "one", LoraConfig(**options), **options)
    mine = copy.deepcopy(plain)
    sum_in_products(mine)
    x, layer = torch.randn(100, 32).bfloat16(), plain.base_layer
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        base, low = layer(x), plain.lora_A["one"](x)  # which both round alike
        found = [forward(x).double() for forward in (plain, mine)]
    exact = base.double() + 1.5 * low.double() @ plain.lora_B["one"].weight.bfloat16().double().t()
    off, mine_off = ((one - exact).norm() for one in found)
    assert 0 < mine_off < 0.7 * off
    assert torch.equal(found[1], exact.bfloat16().double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_of_zero_leaves_the_base_to_the_bit(dtype) -> None:
    _, mine = pair(LLAMA, dtype, init_lora_weights=True)
    leave_casts_to_autocast(mine)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        with Operations() as counted:
            logits = mine(input_ids=IDS).logits
        with mine.disable_adapter():
            assert torch.equal(mine(input_ids=IDS).logits, logits)
    assert counted.seen["addmm_"] == LAYERS * MAPS


def test_adapters_that_are_on_together_add_up() -> None:
    plain, mine = pair(LLAMA)
    for model in (plain, mine):
        torch.manual_seed(1)
        model.add_adapter("two", LoraConfig(**UNEVEN | {"lora_alpha": 3}))
        model.base_model.set_adapter(["default", "two"])
    same(mine, plain)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_what_is_not_plain_lora_stays_peft_s(options) -> None:
    plain, mine = pair(LLAMA, **options)
    with torch.no_grad():
        assert torch.equal(mine(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_merged_layers_and_rows_of_several_adapters_stay_peft_s() -> None:
    plain, mine = (model.eval() for model in pair(LLAMA))
    rows = {"adapter_names": ["default", "__base__"]}
    with torch.no_grad():
        assert torch.equal(mine(input_ids=IDS, **rows).logits, plain(input_ids=IDS, **rows).logits)
        for model in (plain, mine):
            model.merge_adapter()
        assert torch.equal(mine(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_without_autocast_bfloat16_meets_adapters_in_float32_as_peft_has_it() -> None:
    plain, mine = pair(LLAMA, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(mine(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_shallow_copy_computes_by_its_own_weights_and_a_model_can_be_saved_whole(tmp_path) -> None:
    """As what spreads a model over GPUs copies it."""
    _, mine = pair(LLAMA)
    layer = next(module for module in mine.modules() if isinstance(module, lora.Linear))
    x = torch.randn(3, layer.in_features)
    replica = layer._replicate_for_data_parallel()
    replica._modules["lora_B"] = copy.deepcopy(layer.lora_B)
    replica._modules["lora_B"]["default"].weight.data.zero_()
    assert torch.equal(replica(x), layer.base_layer(x))
    assert not torch.equal(layer(x), layer.base_layer(x))
    torch.save(mine, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(input_ids=IDS).logits, mine(input_ids=IDS).logits)


def test_a_layer_in_another_type_than_autocasts_keeps_it() -> None:
    found = []
    for model in pair(LLAMA):
        leave_casts_to_autocast(model)
        for module in model.modules():
            if isinstance(module, lora.Linear):  # as layers that hold out against autocast
                module.base_layer.register_forward_hook(lambda _, __, output: output.float())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append(model(input_ids=IDS).logits)
    assert torch.equal(*found)
