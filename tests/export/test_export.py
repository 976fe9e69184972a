"""What is exported does what the policy did, loads without this package, and says what is known."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.export.card import plain
from llm_rlhf.export.folder import MARK, export
from llm_rlhf.models.base import same_tokens

IDS = torch.arange(10, 40)[None]


def silent(line: str) -> None: ...


def logprobs(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float().log_softmax(-1)


def policy_of(run: Path) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(run / "sft" / "model")
    return logprobs(PeftModel.from_pretrained(base, run / "ppo" / "policy"))


def metadata(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_an_adapter_on_the_hubs_base_holds_both_stages(hub, make_run, tmp_path) -> None:
    run = make_run()
    made = export(str(run), to=str(tmp_path / "out"), say=silent)
    assert made.kind == "adapter"
    (made.folder / "new").touch()
    modes = {path.stat().st_mode for path in made.folder.iterdir()}
    assert len(modes) == 1  # weights as well: another account's server reads what it reads
    assert made.notes == []
    model = AutoPeftModelForCausalLM.from_pretrained(made.folder)
    assert model.peft_config["default"].base_model_name_or_path == "tiny-org/tiny-base"
    assert model.peft_config["default"].r == 8
    torch.testing.assert_close(logprobs(model), policy_of(run), atol=2e-5, rtol=3e-5)  # float32, another order
    assert made.difference.replies == 6
    assert made.difference.largest < 1e-4  # likewise
    assert made.difference.agreement == 1
    assert metadata(made.folder)["base_model"] == "tiny-org/tiny-base"
    assert metadata(made.folder)["library_name"] == "peft"


@pytest.mark.parametrize("stage", ["", ":sft"])
def test_whole_weights(hub, make_run, tmp_path, stage) -> None:
    run = make_run()
    made = export(f"{run}{stage}", merge=True, to=str(tmp_path / "out"), say=silent)
    expected = logprobs(AutoModelForCausalLM.from_pretrained(run / "sft" / "model")) if stage else policy_of(run)
    model = AutoModelForCausalLM.from_pretrained(made.folder)
    torch.testing.assert_close(logprobs(model), expected, atol=2e-5, rtol=3e-5)
    assert model.config.use_cache
    config = model.generation_config
    assert (config.eos_token_id, config.do_sample, config.temperature, config.top_k) == ([0], True, 0.7, 0)
    assert AutoTokenizer.from_pretrained(made.folder).chat_template
    assert metadata(made.folder)["library_name"] == "transformers"


def test_without_sft_the_policy_is_the_adapter(hub, make_run, tmp_path) -> None:
    run = make_run(sft=False)
    made = export(str(run), to=str(tmp_path / "out"), say=silent)
    base = AutoModelForCausalLM.from_pretrained(hub)
    expected = logprobs(PeftModel.from_pretrained(base, run / "ppo" / "policy"))
    found = logprobs(AutoPeftModelForCausalLM.from_pretrained(made.folder))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=3e-5)


def test_on_a_base_of_this_machine_whole_weights_are_written_and_why(base_folder, make_run, tmp_path) -> None:
    told = []
    made = export(str(make_run(base=str(base_folder))), to=str(tmp_path / "out"), say=told.append)
    assert made.kind == "model"
    assert "its base is a folder of this machine, on which an adapter alone would load nowhere else" in told[0]
    assert "base_model" not in metadata(made.folder)


def test_a_pad_token_that_training_added_is_left_out(without_pad, make_run, tmp_path) -> None:
    """The run's embeddings were grown for it; the hub's base has no row of it."""
    run = make_run()
    assert "base_model.model.model.embed_tokens.weight" in load_file(run / "sft/adapter/adapter_model.safetensors")
    made = export(str(run), to=str(tmp_path / "out"), say=silent)
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    assert "<|pad|>" not in tokenizer.get_vocab()
    assert tokenizer.pad_token == tokenizer.eos_token == "<|eos|>"
    assert GenerationConfig.from_pretrained(made.folder).pad_token_id == tokenizer.pad_token_id
    assert "In training '<|pad|>' padded" in (made.folder / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(without_pad)
    found = logprobs(PeftModel.from_pretrained(base, made.folder))
    expected = policy_of(run)[..., : found.size(-1)].log_softmax(-1)  # without the row that the base has not
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=3e-5)
    assert made.difference.agreement == 1


@pytest.mark.slow
def test_from_four_bits_the_difference_is_measured(hub, make_run, tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    run = make_run(dtype="bfloat16", quantization="nf4")
    made = export(str(run), merge=True, to=str(tmp_path / "out"), say=silent)
    weights = load_file(made.folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((made.folder / "config.json").read_text())
    assert made.difference.kl > 1e-4  # four bits are not sixteen
    card = (made.folder / "README.md").read_text()
    assert "as it was trained (base held in nf4)" in card
    assert f"KL {made.difference.kl:.2g} nats a token" in card


def test_the_clock_goes_on_and_arguments_stay(hub, make_run, tmp_path) -> None:
    """The run's day is the run's; whoever uses the policy next year has another one."""
    path = hub / "chat_template.jinja"
    path.write_text("{{ mood }}{{ strftime_now('%Y') }}" + path.read_text())
    run = make_run(chat_template_kwargs={"mood": "calm"}, chat_template_date="1999-05-04")
    trained = AutoTokenizer.from_pretrained(run / "ppo" / "policy")
    assert '"1999"' in trained.chat_template
    made = export(str(run), to=str(tmp_path / "out"), say=silent)
    template = AutoTokenizer.from_pretrained(made.folder).chat_template
    assert "strftime_now('%Y')" in template
    assert '{%- set mood = "calm" %}' in template
    assert made.notes == [
        "Its chat template asks the clock for the day, as the base's does; in training it was always 1999-05-04."
    ]
    assert made.notes[0] in (made.folder / "README.md").read_text()
    assert made.difference.largest < 1e-4  # read with the day of the training


def test_policy_and_base_are_told_apart_by_their_own_tokens_alone(hub, make_run) -> None:
    """What the run added to the base's tokenizer (a day, arguments) is in the policy's; they are asked together."""
    path = hub / "chat_template.jinja"
    path.write_text("{{ strftime_now('%Y') }}" + path.read_text())
    run = make_run(sft=False, chat_template_date="1999-05-04")
    policy = subject_of(str(run))
    assert same_tokens(policy.base, policy.model, policy.adapter, None)
    template = run / "ppo" / "policy" / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    assert not same_tokens(policy.base, policy.model, policy.adapter, None)


def test_what_is_more_than_lora_is_refused_with_the_remedy(hub, make_run, tmp_path) -> None:
    run = make_run()
    path = run / "ppo" / "policy" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(RecipeError, match=r"cannot be one adapter on tiny-org/tiny-base: .*use_dora True.*--merge"):
        export(str(run), to=str(tmp_path / "out"), say=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{run}:base", "is the base that the run began from"), ("http://localhost:1/v1#m", "is an endpoint")],
)
def test_what_has_nothing_to_export_is_refused(hub, make_run, text, message) -> None:
    with pytest.raises(RecipeError, match=message):
        export(text.format(run=make_run()), say=silent)


class TestTheFolder:
    def test_something_else_is_not_written_over_and_an_export_is(self, hub, make_run, tmp_path) -> None:
        run, out = make_run(), tmp_path / "out"
        out.mkdir()
        (out / "thesis.txt").write_text("years")
        with pytest.raises(RecipeError, match="is not empty, and not an earlier export"):
            export(str(run), to=str(out), say=silent)
        assert [path.name for path in out.iterdir()] == ["thesis.txt"]
        (out / "thesis.txt").unlink()
        for merge, weights in ((False, "adapter_model.safetensors"), (True, "model.safetensors")):
            export(str(run), merge, to=str(out), say=silent)
            assert [path.name for path in out.glob("*.safetensors")] == [weights]

    def test_an_export_that_dies_leaves_nothing(self, hub, make_run, tmp_path, monkeypatch) -> None:
        run, out = make_run(), tmp_path / "elsewhere" / "out"
        export(str(run), to=str(out), say=silent)
        before = {path.name: path.read_bytes() for path in out.iterdir()}

        def die(*_args) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("llm_rlhf.export.folder.model_card", die)
        with pytest.raises(KeyboardInterrupt):
            export(str(run), merge=True, to=str(out), say=silent)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert [path.name for path in out.parent.iterdir()] == ["out"]

    def test_its_name_is_the_runs(self, hub, make_run, tmp_path, monkeypatch) -> None:
        run = make_run()
        monkeypatch.chdir(tmp_path)
        assert export(str(run), say=silent).folder == Path("exports/hh")
        assert export(f"{run}:sft", say=silent).folder == Path("exports/hh-sft")
        assert export(f"mine={run}", say=silent).folder == Path("exports/mine")


class TestTheCard:
    @pytest.fixture
    def card(self, hub, make_run, tmp_path) -> str:
        return (export(str(make_run()), to=str(tmp_path / "out"), say=silent).folder / "README.md").read_text()

    def test_without_a_report_nothing_is_claimed(self, card) -> None:
        assert "**Nothing was measured of it.**" in card
        assert "What was measured\n" not in card
        assert "model-index" not in card

    def test_no_path_and_no_secret(self, card, tmp_path) -> None:
        assert str(tmp_path) not in card
        assert "hf_x" not in card
        assert "hub_token" not in card
        assert "| preferences | pairs.jsonl | file | overall |" in card
        assert "| preferences | org/pairs | hub, train | overall |" in card
        assert metadata(tmp_path / "out")["datasets"] == ["org/pairs"]

    @pytest.mark.slow
    def test_its_code_works_word_for_word_without_this_package(self, hub, make_run, tmp_path) -> None:
        """Of an adapter and of whole weights, each with names of its own, in one process."""
        run = str(make_run())
        lines = ["import sys", "sys.modules['llm_rlhf'] = None", "import torch"]
        for merge in (False, True):
            made = export(run, merge, to=str(tmp_path / "there" / f"merged-{merge}"), say=silent)
            code = re.search(r"```python\n(.*?)```", (made.folder / "README.md").read_text(), re.DOTALL)[1]
            lines += ["torch.manual_seed(0)", f"exec({code!r}, {{}})", f"print('done: {merge}')"]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path / "there", capture_output=True, text=True,
            env={"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "done: False" in done.stdout
        assert "done: True" in done.stdout
        assert "deprecated" not in done.stderr.replace("is_gradient_checkpointing` is deprecated", "")


def test_the_mark_says_of_what_it_was_made(hub, make_run, tmp_path) -> None:
    out = tmp_path / "out"
    export(str(make_run()), to=str(out), say=silent)
    mark = json.loads((out / MARK).read_text())
    assert mark["made_of"] == "hh (ppo)"
    assert set(mark["files"]) == {path.name for path in out.iterdir()} - {MARK}
    assert str(tmp_path) not in json.dumps(mark)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/data/pairs.jsonl", "pairs.jsonl"),
        ("~/models/qwen", "qwen"),
        ("Anthropic/hh-rlhf", "Anthropic/hh-rlhf"),
        ("local:/models/judge", "local:judge"),
        ("people:/home/me/verdicts.jsonl", "people:verdicts.jsonl"),
        ("https://me:secret@host/v1?key=1#judge", "https://host/v1#judge"),
        ("a text " * 100, "a text " * 100),
    ],
)
def test_names_in_the_card_are_without_folders_and_secrets(value, shown) -> None:
    assert plain(value) == shown
