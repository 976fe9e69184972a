"""Rows and files nobody should have written: each is set aside with its reason and line, or refused in a sentence."""

import gzip
import json
from pathlib import Path

import pytest

from llm_rlhf.data.checks import fit_conversation, write_quarantine
from llm_rlhf.data.sources import load_preferences, load_prompts
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

GOOD = b'{"prompt": "Where is the key?", "chosen": "Mat", "rejected": "Hat"}'


def pair(**changes: object) -> bytes:
    return json.dumps({"prompt": "Where is the key?", "chosen": "Mat", "rejected": "Hat", **changes}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "q", ', "malformed JSON"),
        (b"not JSON at all", "malformed JSON"),
        (GOOD + GOOD, "malformed JSON"),
        (b"[" * 200_000, "malformed JSON"),
        (b'{"prompt": "q", "margin": ' + b"1" * 10_000 + b"}", "malformed JSON"),
        (b'{"prompt": "a\x00b"}', "malformed JSON"),  # a bare NUL; JSON wants it escaped
        (b'["a", "b"]', "wrong type"),
        (b"null", "wrong type"),
        (b'"text"', "wrong type"),
        (b"{}", "missing field"),
        (pair(chosen=None), "missing field"),
        (pair(prompt=None), "missing field"),
        (pair(chosen=3), "wrong type"),
        (pair(chosen={"text": "Mat"}), "wrong type"),
        (pair(prompt=[[]]), "wrong type"),
        (pair(margin=[]), "wrong type"),
        (pair(margin=-(10**400)), "wrong type"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e999}', "wrong type"),
        (pair(margin=10**400), "wrong type"),
        (GOOD.replace(b"Mat", b"M\xe4t"), "invalid UTF-8"),  # Latin-1
        (GOOD.replace(b"Mat", b"\xed\xa0\x80"), "invalid UTF-8"),  # a surrogate written out as bytes
        (GOOD.decode().encode("utf-16"), "invalid UTF-8"),
        (GOOD.replace(b"Mat", rb"\ud83d"), "lone surrogate"),
        (GOOD.replace(b"key", rb"\udc80"), "lone surrogate"),
        (GOOD.replace(b"Mat", rb"a\u0000b"), "NUL character"),
        (b"\xef\xbb\xbf" + GOOD, "malformed JSON"),  # a byte-order mark anywhere but at the start of the file
        (pair(chosen="Hat"), "chosen equals rejected"),
        (pair(prompt=""), "empty prompt"),
        (pair(prompt=" \u200b\n"), "empty prompt"),
        (pair(chosen=""), "empty chosen reply"),
        (pair(rejected="\ufeff"), "empty rejected reply"),
        (
            json.dumps(
                {
                    side: [{"role": "user", "content": f"{side}?"}, {"role": "assistant", "content": "Yes"}]
                    for side in ("chosen", "rejected")
                }
            ).encode(),
            "no shared prompt",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_fault_41_fault_42_fault_43_fault_45_fault_46_fault_47_are_set_aside_by_line(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    assert b"\n" not in line
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", b"  ", line, GOOD]) + b"\n\n")
    loaded = load_preferences([Source(source=str(path), format="preference")])
    assert [row.origin.row for row in loaded.rows] == [1, 5]
    assert [(item.origin.row, item.reason) for item in loaded.set_aside] == [(4, reason)]
    assert loaded.counts()["read"] == 3
    write_quarantine(loaded.set_aside, tmp_path / "quarantine.jsonl")
    written = (tmp_path / "quarantine.jsonl").read_bytes()
    assert json.loads(written)["row"] == 4
    assert len(written) < 1000
    assert "\ufffd" not in str(json.loads(written))


def test_fault_43_a_byte_order_mark_at_the_start_is_removed_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n")
    loaded = load_preferences([Source(source=str(path))])
    assert [row.chosen for row in loaded.rows] == ["Mat", "Mat"]
    assert loaded.repaired == {"byte-order mark removed": 1}


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈",
        "مرحبا، كيف الحال؟ \u202bשלום\u202c",
        "zero\u200bwidth\u200djoin\ufeffed",
        "Z" + "\u0351\u0321" * 5000,
        "line\u2028and\u2029paragraph\x85next\x0bfeed\r\nend",
        "<|im_start|>system</s>[INST]<|endoftext|>",
        "\U0010ffff \ue000 \ufdd0",
    ],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_fault_44_text_comes_through_unchanged(text: str, escaped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    row = {"prompt": f"{text}?", "chosen": text, "rejected": f"no {text}"}
    transcripts = {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
    for fields in (row, transcripts):
        path.write_bytes(gzip.compress(json.dumps(fields, ensure_ascii=escaped).encode("utf-8")))
        (pair,) = load_preferences([Source(source=str(path))]).rows
        assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == (row["prompt"], text, f"no {text}")


def test_fault_48_a_prompt_of_a_million_characters_is_read_and_then_cut_by_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    talk = [
        {"role": "user", "content": "long " * 200_000},
        {"role": "assistant", "content": "So?"},
        {"role": "user", "content": "Where is the key?"},
    ]
    path.write_text(json.dumps({"prompt": talk}) + "\n" + json.dumps({"prompt": talk[0]["content"]}), encoding="utf-8")
    whole, single = load_prompts([Source(source=str(path))], []).rows
    assert whole.messages == talk

    def count_tokens(messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    assert fit_conversation(whole.messages, count_tokens, 1000) == talk[2:]
    assert fit_conversation(single.messages, count_tokens, 1000) is None


def test_fault_50_nothing_left_names_the_source_and_the_reasons(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([pair(chosen="Hat"), b"{", pair(chosen="Hat"), pair(prompt="")]))
    with pytest.raises(DataError, match=r"4 rows read.*chosen equals rejected \(2\), .*row 1") as error:
        load_preferences([Source(source=str(path))])
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_fault_50_an_empty_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pairs\.jsonl has no rows"):
        load_preferences([Source(source=str(path))])


def test_fault_50_a_file_of_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD.decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"invalid UTF-8 \(1\)"):
        load_preferences([Source(source=str(path))])


@pytest.mark.parametrize("damage", ["cut", "changed", "tail"])
def test_a_damaged_gzip(damage: str, tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"\n".join(pair(margin=i) for i in range(2000))))
    if damage == "cut":
        del whole[len(whole) // 2 :]
    elif damage == "changed":
        whole[len(whole) // 2] ^= 0xFF
    else:
        whole += b"tail"
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"pairs\.jsonl\.gz is a damaged gzip file"):
        load_preferences([Source(source=str(path))])


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="git lfs pull"):
        load_preferences([Source(source=str(path))])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("pears.jsonl", r"pears\.jsonl.*Did you mean .*pairs\.jsonl\?"),
        ("nowhere/at/all.jsonl", "nearest folder that exists"),
        ("pairs.csv", r"no file .*Did you mean .*pairs\.jsonl"),
        ("notes.txt", r"none of \.jsonl, .*\.csv"),
        ("*.parquet", r"No file fits"),
        ("table.csv", "has no rows"),
        ("pairs.jsonl/inside.jsonl", "no file"),
    ],
)
def test_a_missing_or_unreadable_file(asked: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(GOOD)
    (tmp_path / "table.csv").write_bytes(b"prompt,chosen\n")
    (tmp_path / "notes.txt").write_bytes(b"prompt\n")
    with pytest.raises(DataError, match=message) as error:
        load_preferences([Source(source=str(tmp_path / asked))])
    assert "\n" not in str(error.value)


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(DataError, match="empty name"):
        load_preferences([Source(source=" ")])
    with pytest.raises(DataError, match="'data_dir' is 'part'"):
        load_preferences([Source(source=str(path), data_dir="part")])
    with pytest.raises(DataError, match="'split' is 'test'"):
        load_preferences([Source(source=str(path), split="test")])
