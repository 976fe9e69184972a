"""Replies decoded by compiled steps are those of the plain loop, each policy's its own, and few graphs serve them."""

import types

import pytest
import torch
from model_helpers import random_policy_adapter
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

from llm_rlhf.models import inference, reply_decoding
from llm_rlhf.models.adapters import load_beside
from llm_rlhf.models.inference import ReplyCache, load_roles, sample_replies
from llm_rlhf.models.reply_decoding import ReplyDecoding, compiles, decoding_steps
from llm_rlhf.models.sampler import WORTH_IT
from llm_rlhf.recipe.sections import ModelSection

WORDS = ("a", "why not", "tell me more of it", "why not", "go", "and then there was nothing left to say of it at all")
PROMPTS = [[{"role": "user", "content": text}] for text in WORDS]
LONG = [[{"role": "user", "content": text * 12}] for text in WORDS[2:4]]  # over 64 tokens
ROLES = [], ["default"], ["default1"]
R = 12


def loaded(base_folder, folder, dtype="float32"):
    """A base with a policy and its start, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    policy, start = (random_policy_adapter(base_folder, folder / f"{seed}", seed=seed, r=4) for seed in (3, 4))
    model = load_roles(base_folder, ModelSection(base=str(base_folder), dtype=dtype), tokenizer, {}, policy)
    assert not load_beside(model, start, "default1")
    return model.requires_grad_(False).eval(), tokenizer


@pytest.fixture(scope="module")
def model(base_folder, tmp_path_factory):
    return loaded(base_folder, tmp_path_factory.mktemp("adapters"))


def replies(model, adapters, decoding=None, prompts=PROMPTS, **options):
    given = {"response_length": R, "temperature": 1.0, "seed": 0, "batch_size": 4, "decoding": decoding} | options
    return [reply.ids for reply in sample_replies(*model, prompts, adapters, **given)]


@pytest.fixture(params=["merged", "beside"])
def decoding(request, model, traced, monkeypatch):
    """Compiled, in float32 so that all replies are exact: from merged copies, or as in bfloat16 without."""
    if request.param == "beside":
        monkeypatch.setattr(reply_decoding, "is_exact", lambda *_: False)
    found = ReplyDecoding(model[0], "compiled")
    found.kind = request.param
    return found


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_compiled_replies_are_the_plain_ones_of_every_policy(model, decoding, temperature) -> None:
    known = [replies(model, role, temperature=temperature) for role in ROLES]
    assert len({str(of) for of in known}) == 3
    for role, of in zip(ROLES, known, strict=True):
        assert replies(model, role, decoding, temperature=temperature) == of
    own = "weights merged" if decoding.kind == "merged" else "the adapter beside its base"
    assert decoding.used == {"decoding": {"compiled"}, "sampled_from": {own, "the base alone"}}


@pytest.mark.slow
def test_a_reply_hangs_neither_on_the_batch_nor_on_what_fills_it_up(model, decoding) -> None:
    known = replies(model, ["default"])
    assert known[1] != known[3]  # the same prompt twice
    for size in (4, 1, 5, 6):
        assert replies(model, ["default"], decoding, batch_size=size) == known
    turned = replies(model, ["default"], decoding, PROMPTS[::-1])
    assert [turned[5], turned[3], turned[1]] == [known[0], known[2], known[4]]
    assert replies(model, ["default"], decoding, seed=1) != known


@pytest.mark.slow
def test_graphs_are_one_a_policy_and_length_however_many_batches(model, decoding, traced) -> None:
    def graphs():
        return traced["stats"]["unique_graphs"]

    counted = []
    for role in ROLES:
        replies(model, role, decoding)
        counted.append(graphs())
    assert counted == ([1, 2, 2] if decoding.kind == "merged" else [1, 2, 3])  # a second copy is of the first's shape
    for role in (["default1"], [], ["default1"], []):
        replies(model, role, decoding, PROMPTS[:3] * 4)
    assert graphs() == counted[-1]
    replies(model, [], decoding, LONG)
    assert graphs() == counted[-1] + 1
    replies(model, [], decoding, LONG + PROMPTS)  # a batch of both, and one of short prompts, whose graph is there
    assert graphs() == counted[-1] + 1


@pytest.mark.slow
def test_more_than_dynamos_own_limit_of_graphs_are_compiled(model, traced, monkeypatch) -> None:
    monkeypatch.setattr(reply_decoding, "ROOM", 1)
    decoding = ReplyDecoding(model[0], "compiled")
    with torch._dynamo.config.patch(recompile_limit=2):
        for length in range(1, 6):
            replies(model, [], decoding, PROMPTS[:1], response_length=length + 1)
    assert traced["stats"]["unique_graphs"] == 5


@pytest.mark.slow
def test_snapshots_follow_each_other_under_one_name(model, decoding, base_folder, tmp_path, traced) -> None:
    """Each with a copy of a norm beside its LoRA, which is no weight of the one before."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        lora = {"target_modules": ["q_proj"], "init_lora_weights": False, "modules_to_save": ["model.norm"]}
        snapshot = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **lora))
        snapshot.base_model.model.model.norm.modules_to_save["default"].weight.data.normal_(1, 0.5)
        snapshot.save_pretrained(tmp_path / f"{seed}")
        load_beside(model[0], tmp_path / f"{seed}", "snapshot")
        model[0].requires_grad_(False).eval()
        found.append(replies(model, ["snapshot"]))
        assert replies(model, ["snapshot"], decoding) == found[-1]
        model[0].delete_adapter("snapshot")
        decoding.forget("snapshot")
    assert found[0] != found[1]
    if decoding.kind == "beside":
        assert traced["stats"]["unique_graphs"] == 1
    assert replies(model, ["default"], decoding) == replies(model, ["default"])


@pytest.mark.slow
def test_where_memory_runs_out_it_goes_on_in_halves(model, decoding, monkeypatch, capsys) -> None:
    known, base = replies(model, ["default"]), model[0].get_base_model()
    sizes, prefill = [], type(base)._prefill

    def full(self, ids, *args):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prefill(self, ids, *args)

    monkeypatch.setattr(type(base), "_prefill", full)
    assert replies(model, ["default"], decoding) == known
    assert sizes == [4, 2, 2, 2]
    assert replies(model, ["default"], decoding, batch_size=4) == known
    assert sizes == [4, 2, 2, 2, 2, 2, 2]  # and does not try again
    assert "memory ran out in reading and sampling, over 4 rows" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_share_the_prompts_and_give_the_same(model, decoding, monkeypatch) -> None:
    known, prompts = replies(model, ["default"]), len(PROMPTS)
    together = [None] * prompts
    for index in range(2):
        state = types.SimpleNamespace(process_index=index, num_processes=2, is_main_process=False)
        monkeypatch.setattr(inference, "processes", lambda state=state: state)

        def gather(found):
            for i, ids in found:
                together[i] = ids
            return {number: [] for number in range(prompts)} | dict(found)

        monkeypatch.setattr(inference, "gather_object", gather)
        replies(model, ["default"], decoding)
    assert together == known


def test_in_bfloat16_nothing_is_merged(base_folder, tmp_path, traced) -> None:
    model = loaded(base_folder, tmp_path, "bfloat16")
    decoding = ReplyDecoding(model[0], "compiled")
    sampler = decoding.settle(["default"], 4, 0, 1.0, 4, R)
    assert sampler.compiled is not None
    assert sampler.copy is None
    assert decoding.used["sampled_from"] == {"the adapter beside its base"}


# ---- when it pays --------------------------------------------------------------------------------------------------


def test_what_pays_by_hand() -> None:
    assert WORTH_IT == 2000
    assert decoding_steps(300, 64, 128) == 5 * 128
    assert [compiles("auto", steps, "cuda") for steps in (1999, 2000)] == [False, True]
    assert not compiles("auto", 10**6, "cpu")
    assert not compiles("plain", 10**6, "cuda")
    assert compiles("compiled", 1, "cpu")


def test_what_is_foreseen_counts_and_what_is_known_does_not(model, traced, monkeypatch) -> None:
    """Calls of 6 replies by 4 of 12 tokens: 24 steps each; 48 pay."""
    monkeypatch.setattr(reply_decoding, "compiles", lambda how, steps, device: steps >= 48)

    def settled(decoding, adapters, known=0):
        return decoding.settle(adapters, 6, known, 1.0, 4, R).compiled is not None

    alone = ReplyDecoding(model[0])
    assert [settled(alone, ["default"]) for _ in range(3)] == [False] * 3
    decoding = ReplyDecoding(model[0])
    for _ in range(2):
        decoding.foresee(["default"], 6, 4, R)
    assert not settled(decoding, []), "another policy's replies do not make it pay"
    assert settled(decoding, ["default"])
    assert settled(decoding, ["default"]), "the last call finds what is compiled"
    assert settled(decoding, ["default"])
    resumed = ReplyDecoding(model[0])
    for _ in range(3):
        resumed.foresee(["default"], 6, 4, R)
    assert not settled(resumed, ["default"], known=6), "there is nothing to sample"
    assert not resumed.used
    assert not settled(resumed, ["default"], known=5), "12 steps, and 24 ahead"
    assert resumed.used["decoding"] == {"plain"}


@pytest.mark.slow
def test_what_is_known_of_an_interrupted_call_is_kept_by_either_decoding(model, decoding, tmp_path) -> None:
    known = replies(model, ["default"])
    replies(model, ["default"], None, PROMPTS[:4], known=ReplyCache(tmp_path / "r.jsonl", {}))
    cache = ReplyCache(tmp_path / "r.jsonl", {})
    assert len(cache.known) == 4
    assert replies(model, ["default"], decoding, known=cache) == known


def test_what_cannot_compile_is_decoded_plainly_or_refused() -> None:
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
    mamba = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="decoding is 'compiled', but MambaForCausalLM does not compile"):
        ReplyDecoding(mamba, "compiled")
    decoding = ReplyDecoding(mamba)
    decoding.how = "compiled"
    assert decoding.settle([], 4, 0, 1.0, 4, R).compiled is None
    assert decoding.used == {"sampled_from": {"the base alone"}, "decoding": {"plain"}}
