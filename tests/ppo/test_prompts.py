"""What PPOTrainer says of the prompts, models and functions it is given, before any weights are loaded."""

import pytest
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedModel

from llm_rlhf import PPOConfig, PPOTrainer


def long_replies(completions, **kwargs) -> list[float]:
    return [float(len(completion)) for completion in completions]


def rows(n: int) -> list[dict]:
    return [{"prompt": f"question {i}"} for i in range(n)]


def messages(*texts: str) -> list[dict]:
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts]


@pytest.fixture
def make(base_folder, tmp_path, monkeypatch):
    """A trainer on these data, for which no weights may be loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)

    def made(train_dataset, eval_dataset=None, reward=long_replies, **options) -> PPOTrainer:
        given = {"model": str(base_folder), "peft_config": LoraConfig(task_type="CAUSAL_LM", r=2)}
        given |= {name: options.pop(name) for name in (*given, "reward_adapter", "heldout_adapter") if name in options}
        config = {"per_device_train_batch_size": 4, "response_length": 16, "bf16": False, "report_to": "none",
                  "total_episodes": 4, **options}  # fmt: skip
        return PPOTrainer(
            **given,
            reward_funcs=[] if reward is None else [reward],
            args=PPOConfig(output_dir=str(tmp_path), **config),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )

    return made


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (None, "train_dataset is missing"),
        (Dataset.from_list(rows(8)).to_iterable_dataset(), r"train_dataset is a stream.*Dataset.from_list"),
        (DatasetDict(train=Dataset.from_list(rows(8))), r"train_dataset has the splits train; give.*\['train'\]"),
        (rows(8), "train_dataset is list; give a datasets.Dataset"),
        (Dataset.from_list([]), "train_dataset is empty"),
        (Dataset.from_dict({"prompt": []}), "train_dataset is empty"),
        (Dataset.from_list([{"query": "a", "other": 1}] * 8), r"\(its columns: query, other\).*rename_column"),
        (Dataset.from_list([{"input_ids": [1, 2]}] * 8), r"its columns: input_ids\).*tokenizes by itself"),
        (Dataset.from_list([{"reply": "a"}] * 8), r"its columns: reply\); add one"),
        (Dataset.from_list([row | {"thought": "x"} for row in messages(*"abcd")]), "has a column 'thought', by which"),
        (Dataset.from_list([*rows(7), {"prompt": None}]), "The prompt in row 7 of train_dataset is missing"),
        (Dataset.from_list([*rows(7), {"prompt": ""}]), "The prompt in row 7 of train_dataset is empty"),
        (Dataset.from_list([*messages("a", "b"), {"prompt": []}]), "The prompt in row 2 of train_dataset is empty"),
        (Dataset.from_list([{"prompt": [5, 6]}] * 8), "row 0 of train_dataset is a list of token ids"),
        (Dataset.from_list([{"prompt": 5}] * 8), "row 0 of train_dataset is int"),
        (Dataset.from_list([{"prompt": [{"role": "user", "content": None}]}] * 8), "a message without role or content"),
        (Dataset.from_list(rows(3)), "There are 3 prompts, but one rollout takes 4; lower per_device_train_batch_size"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_trained_on_are_told_before_weights_are_loaded(make, dataset, words) -> None:
    with pytest.raises(ValueError, match=words):
        make(dataset)


def test_prompts_to_evaluate_on_are_looked_at_too(make) -> None:
    train = Dataset.from_list(rows(8))
    with pytest.raises(ValueError, match="The prompt in row 0 of eval_dataset is missing"):
        make(train, Dataset.from_list([{"prompt": None}]))
    with pytest.raises(ValueError, match=r"eval_dataset\['other'\] is empty"):
        make(train, {"one": train, "other": Dataset.from_list([])})


def test_prompts_must_leave_room_for_a_response_in_the_models_positions(make) -> None:
    """The model has 256 positions, every byte is a token and the template adds two."""
    fits, beyond = "x" * (256 - 16 - 2), "x" * (256 - 16 - 1)
    train = Dataset.from_list(messages(fits, fits, beyond, fits, beyond))
    with pytest.raises(ValueError, match=r"row 2 of train_dataset takes 241 tokens.*256 positions.*2 of 5 in all"):
        make(train)
    with pytest.raises(AssertionError, match="weights were loaded"):
        make(train.select([0, 1, 3, 0]))
    with pytest.raises(ValueError, match="response_length is 256, but prompt and response share the 256 positions"):
        make(train, response_length=256)


def test_what_the_template_refuses_is_told_with_its_row(make, base_folder, monkeypatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.chat_template = "{{ raise_exception('no thanks') if messages|length > 1 else messages[0]['content'] }}"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: tokenizer)
    train = messages("a", "b", "c", "d")
    train[3]["prompt"] *= 2
    with pytest.raises(ValueError, match="Row 3 of train_dataset: the chat template refuses the prompt: no thanks"):
        make(Dataset.from_list(train))


def test_plain_text_is_told_apart_from_messages(make, capsys) -> None:
    told = "plain text, which is continued as it stands"
    for dataset, said in ((rows(4), True), (messages(*"abcd"), False)):
        with pytest.raises(AssertionError, match="weights were loaded"):
            make(Dataset.from_list(dataset))
        assert (told in capsys.readouterr().out) == said


def test_a_small_rollout_is_told_once(make, capsys, monkeypatch) -> None:
    monkeypatch.setattr("llm_rlhf.ppo.prompts._told", set())
    for size, told in ((31, True), (32, False)):
        with pytest.raises(AssertionError, match="weights were loaded"):
            make(Dataset.from_list(rows(32)), per_device_train_batch_size=size)
        assert ("a rollout is 31 responses" in capsys.readouterr().out) == told
    with pytest.raises(AssertionError, match="weights were loaded"):  # as after the look ahead of a run
        make(Dataset.from_list(rows(32)), per_device_train_batch_size=31)
    assert "a rollout is" not in capsys.readouterr().out


def test_models_that_are_not_there_are_told(make, base_folder, tmp_path) -> None:
    train = Dataset.from_list(rows(8))
    for given, words in (
        ({"model": "no/where"}, "The model 'no/where' is no folder here and not in the hub's cache"),
        ({"reward_adapter": "./none"}, "The reward adapter './none' is no folder here, and no hub id"),
        ({"reward_adapter": {"helpful": base_folder}}, "The helpful adapter .* holds no adapter_config.json"),
        ({"heldout_adapter": "./none"}, "The heldout adapter './none' is no folder"),
        ({"heldout_adapter": "./none", "peft_config": None}, "needs a policy adapter on the same base"),
    ):
        with pytest.raises(ValueError, match=words):
            make(train, **given)


def test_a_function_that_cannot_be_called_as_reward_functions_are_is_told(make) -> None:
    def one_reply(prompt, reply) -> float:
        return 1.0

    def no_more(prompts, completions) -> list[float]:
        return [1.0 for _ in completions]

    for function in (one_reply, no_more):
        with pytest.raises(ValueError, match=rf"'{function.__name__}' cannot be called as.*\*\*kwargs"):
            make(Dataset.from_list(rows(4)), reward=function)


def test_a_column_called_thought_is_nobodys_where_no_function_gets_it(make, reward_folder) -> None:
    talks = Dataset.from_list([row | {"thought": "x"} for row in messages(*"abcd")])
    with pytest.raises(AssertionError, match="weights were loaded"):  # nothing was wrong before
        make(talks, reward=None, reward_adapter=str(reward_folder))
