"""Small files that grow: recipes, rows and archives made to fill a machine are refused at once, in a short message."""

import gzip
import json
import resource
import time
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from llm_rlhf.data import big_bench, bounds, files, json_files
from llm_rlhf.data.big_bench import load_comparisons
from llm_rlhf.data.formats import parsing, rankings, recognition, trees
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError, RecipeError, shown
from llm_rlhf.evaluation.gate import gate_of
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import Source
from llm_rlhf.recipe.yaml_text import DEEPEST, LARGEST_FILE, read_yaml
from llm_rlhf.run_folder import differences

RECIPE = "name: tiny\nmodel: {base: some/model}\ndata: {preferences: [{source: pairs.jsonl}]}\nsft: {}\n"
SECONDS = 10.0  # of this process; a bomb takes a fifth of a second here, and without a bound minutes or the memory


def bomb(of: str) -> str:
    """Ten levels, each of nine aliases of the one before: 9^10 values."""
    rows = [f"a0: &a0 {of.replace('ALIASES', 'lol')}"]
    rows += [f"a{i}: &a{i} {of.replace('ALIASES', ','.join([f'*a{i - 1}'] * 9))}" for i in range(1, 10)]
    return "\n".join(rows) + "\nname: *a9\n"


BOMBS = {
    "laughs": (bomb("[ALIASES]"), "every alias written out"),
    "merges": (bomb("{<<: [ALIASES]}").replace("[lol]", "{x: 1}"), "every alias written out"),
    "long text": ("a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 30_000 + "1]\n", "every alias written out"),
    "many": (RECIPE + "seed: [" + "1," * 80_000 + "1]\n", "more than twenty thousand values"),
    "lists": ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 50"),
    "mappings": ("a: " + "{b: " * 5000 + "}" * 5000, "nested deeper than 50"),
    "dashes": ("a:\n  " + "- " * 5000 + "1", "nested deeper than 50"),
    "keys": ("? " * 5000, "nested deeper than 50"),
    "never closed": ("[" * 200_000, "nested deeper than 50"),
    "deep by aliases": (
        "".join(f"a{i}: &a{i} {'[' * 20}{f'*a{i - 1}' if i else 1}{']' * 20}\n" for i in range(9)),
        "nested deeper than 50",
    ),
    "itself": ("a: &a [*a]", "no end"),
    "itself as a key": ("a: &a {b: *a}", "no end"),
    "itself merged": ("a: &a {<<: *a}", "no end"),
    "file": (RECIPE + "#" * LARGEST_FILE, "larger than 256 KiB"),
    "tag": ("a: !!python/" + "x" * 200_000 + " 1", "could not determine a constructor"),
    "alias": ("a: *" + "x" * 200_000, "undefined alias"),
    "integer": (RECIPE + "seed: " + "1" * 5000, "a number of 5,000 digits"),
    "hexadecimal": (RECIPE + "seed: 0x" + "f" * 5000, "a number of 5,002 digits"),
    "sexagesimal": (RECIPE + "seed: " + "1:" * 30_000 + "1", "a number of 60,001 digits"),
    "text": (RECIPE + "seed: " + "x" * 200_000, "Recipe key 'seed' is 'xxxx"),
    "a key": (RECIPE + "? " + "k" * 200_000 + "\n: 1\n", "is unknown"),
    "a list for a key": (RECIPE + "seed: " + "[" * 48 + "]" * 48, r"Recipe key 'seed' is \[\[\["),
    "a date": (RECIPE + "seed: 2025-13-45", "'2025-13-45' is no timestamp"),
    "no integer": (RECIPE + "seed: !!int many", "'many' is no int"),
    "no truth": (RECIPE + "seed: !!bool maybe", "'maybe' is no bool"),
    "no time": (RECIPE + "seed: !!timestamp noon", "'noon' is no timestamp"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_recipe_that_grows_is_refused_at_once_in_a_short_message(name: str, tmp_path: Path) -> None:
    text, said = BOMBS[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.process_time()
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe(path)
    assert time.process_time() - started < SECONDS
    assert len(str(error.value)) < 1500
    if name not in ("text", "a key", "a list for a key"):  # what else reads a run's recipe
        with pytest.raises(RecipeError, match=said):
            subject_of(str(tmp_path))
        with pytest.raises(RecipeError, match=said):
            gate_of(tmp_path, {"run": {"recipe": "none"}})


def test_fault_57_nothing_but_plain_values_is_constructed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for tag in ("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"):
        value = "''" if "name" in tag else f"['touch {canary}']"
        (tmp_path / "recipe.yaml").write_text(f"name: !!{tag} {value}\n")
        with pytest.raises(RecipeError, match="could not determine a constructor"):
            load_recipe(tmp_path / "recipe.yaml")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=" + "[" * 5000, "nested deeper than 50"),
        ("seed=" + "1" * 5000, "a number of 5,000 digits"),
        ("seed=" + "x" * 100_000, "Recipe key 'seed' is 'xxx"),
        ("seed=&a [*a]", "no end"),
        ("a." * 5000 + "b=1", f"more than {DEEPEST} sections"),
        ("x" * 100_000 + "=1", "is unknown"),
        ("x" * 100_000, "is not of the form"),
        ("data.preferences.²=1", "must be a number from 0 to 0"),
        ("data.preferences." + "9" * 5000 + "=1", "must be a number from 0 to 0"),
    ],
)
def test_an_override_is_bounded_as_a_recipe_is(override: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe(path, [override])
    assert len(str(error.value)) < 1500


SHARED = """
name: tiny
model: {base: some/model}
data:
  preferences: [&pairs {source: pairs.jsonl, limit: 5}, {<<: *pairs, source: more.jsonl}]
  prompts: [*pairs]
sft: &how {learning_rate: 1.0e-4, max_steps: 3}
reward: *how
"""


def test_aliases_mean_what_they_name_and_an_override_of_one_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SHARED)
    found = load_recipe(path)
    assert [(s.source, s.limit) for s in found.data.preferences] == [("pairs.jsonl", 5), ("more.jsonl", 5)]
    assert found.sft == found.reward == {"learning_rate": 1e-4, "max_steps": 3}
    changed = load_recipe(path, ["sft.max_steps=9", "data.preferences.0.limit=1"])
    assert changed.sft is not None
    assert (changed.sft["max_steps"], changed.reward["max_steps"]) == (9, 3)  # type: ignore[index]
    assert [s.limit for s in (*changed.data.preferences, *changed.data.prompts)] == [1, 5, 5]


def test_an_override_may_alias_too() -> None:
    value = read_yaml("[&a {x: 1}, *a]", "it")
    value[0]["x"] = 2
    assert value == [{"x": 2}, {"x": 1}]


def test_a_merge_of_a_merge_is_no_key_given_twice() -> None:
    """PyYAML writes a merge into the mapping that is merged, where the check then finds its keys twice."""
    text = "a: {b: {c: {d: &d {<<: &e {x: 1, y: 1}, x: 2}}}}\nf: {<<: *d}"
    assert read_yaml(text, "it") == {"a": {"b": {"c": {"d": {"x": 2, "y": 1}}}}, "f": {"x": 2, "y": 1}}


def test_a_saved_recipe_of_many_sources_is_far_from_the_bounds() -> None:
    source = {"source": "some/where.jsonl", "format": "preference", "limit": 5, "columns": {"prompt": "question"}}
    assert len(read_yaml(yaml.safe_dump([dict(source) for _ in range(1000)]), "it")) == 1000


@pytest.mark.parametrize(
    "value",
    [None, 1, -2.5, "a'b\n", [], (1,), (1, "b"), {}, {"a": [1, {"b": (2, 3)}], 1: None}, {"b"}, b"x", True],
)
def test_a_short_value_is_shown_as_python_prints_it(value: object) -> None:
    assert shown(value) == repr(value)


def test_a_value_without_end_is_shown_by_its_beginning() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep, deep]
    itself: list = []
    itself.append(itself)
    for value in (deep, itself, "x" * 10**7, ["x" * 10**6] * 1000, 10**100_000, {"k" * 10**6: 1}, list(range(10**6))):
        assert len(shown(value)) < 320
        assert len(shown([value])) < 320
    while deep:  # level by level: Python would free it by as many calls in each other
        deep = deep.pop()


def test_no_message_is_longer_than_a_screen_or_two_and_its_end_is_kept() -> None:
    for error in (RecipeError, DataError):
        told = str(error("Recipe key 'x' is " + "y" * 10**7 + "; lower it."))
        assert len(told) < 4100
        assert told.startswith("Recipe key 'x' is y")
        assert told.endswith("y; lower it.")
        assert "characters left out" in told


def test_what_differs_between_recipes_is_bounded() -> None:
    (line,) = differences({"a": {"b": "x" * 10**6}}, {"a": {"b": ["y" * 10**6] * 100}})
    assert len(line) < 700


GOOD = b'{"prompt": "Where is the key?", "chosen": "Mat", "rejected": "Hat"}\n'


def packed(path: Path, *parts: tuple[bytes, int]) -> Path:
    """A gzip file of each part so many times, in members of a megabyte, which are packed once."""
    with path.open("wb") as file:
        for part, times in parts:
            within = max(1, min(times, 2**20 // len(part)))
            file.write(gzip.compress(part * within) * -(-times // within))
    return path


@pytest.fixture
def small_bounds(monkeypatch) -> None:
    """Bounds of kilobytes in the place of megabytes, so that a test's bombs need no time."""
    for module in (bounds, files, json_files, big_bench):
        for name, value in {"LONGEST_ROW": 4096, "MOST_SET_ASIDE": 1000}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(parsing, "MOST_SET_ASIDE", 1000)
    monkeypatch.setattr(recognition, "MOST_SET_ASIDE", 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl.gz", b" ", "over 200 times as much"),
        ("rows.jsonl.gz", b"[", "over 200 times as much"),
        ("rows.json.gz", b"[", "over 200 times as much"),
        ("rows.csv.gz", b" ", "is damaged in row 1, .*line 1 has more than"),
    ],
)
def test_an_archive_that_grows_a_thousandfold_is_refused_in_bounded_memory(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    path = packed(tmp_path / name, (GOOD.replace(b"\n", b" "), 1), (content, 2**28))
    assert path.stat().st_size < 3 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (lambda source: load_preferences([source]), lambda source: load_comparisons([source])):
        with pytest.raises(DataError, match=said):
            load(Source(source=str(path), format="preference"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB; 128 MiB are unpacked


def test_an_archive_that_grows_as_text_does_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "pairs.jsonl.gz", (GOOD, 2000))
    assert len(load_preferences([Source(source=str(path))]).rows) >= 2000


def test_a_growth_is_refused_only_beyond_the_ratio_and_the_free_bytes() -> None:
    growth = bounds.Growth("x.gz", 1000, most=200, freely=10_000_000)
    growth.check(10_000_000)
    growth = bounds.Growth("x.gz", 10_000_000_000, most=200, freely=10)
    growth.check(200 * 10_000_000_000)
    with pytest.raises(DataError, match=r"x\.gz has 1,000 bytes and unpacks .* over 200 times as much.*split it"):
        bounds.Growth("x.gz", 1000, most=200, freely=10_000).check(200_001)


def test_a_line_that_is_too_long_is_set_aside_and_those_after_it_are_read(small_bounds, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    long = GOOD.replace(b"Mat", b"M" * 5000)
    path.write_bytes(GOOD + long + GOOD + b"x" * 4096 + b"\n" + b"y" * 4097 + b"\n" + GOOD + b"z" * 20_000)
    loaded = load_preferences([Source(source=str(path))])
    assert [row.origin.row for row in loaded.rows] == [1, 3, 6]
    assert [(item.origin.row, item.reason) for item in loaded.set_aside] == [
        (2, "row too long"),
        (4, "row too long"),
        (5, "row too long"),
        (7, "row too long"),
    ]
    assert "split the row, or the file" in loaded.set_aside[0].detail


def test_a_list_item_that_is_too_long_or_deep_is_set_aside(small_bounds, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    items = [GOOD, GOOD.replace(b"Mat", b"M" * 5000), GOOD.replace(b'"Mat"', b"[" * 300 + b"]" * 300), GOOD]
    path.write_bytes(b"[" + b",".join(items) + b"]")
    loaded = load_preferences([Source(source=str(path))])
    assert [row.origin.row for row in loaded.rows] == [1, 4]
    assert [item.reason for item in loaded.set_aside] == ["row too long", "malformed JSON"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_or_a_line_of_a_table_that_is_too_long_names_its_row(suffix, small_bounds, tmp_path: Path) -> None:
    sign = "," if suffix == ".csv" else "\t"
    header, good = sign.join(("prompt", "chosen", "rejected")), sign.join(("q", "a", "b"))
    path = tmp_path / f"pairs{suffix}"
    for bad in (sign.join(("q", "x" * 5000, "b")), sign.join(("q", '"' + "a\n" * 3000 + '"', "b")), '"' + "x\n" * 4000):
        path.write_text("\n".join([header, good, bad, good]))
        with pytest.raises(DataError, match=r"damaged in row 2, .*mend its quotes: one that is never closed"):
            load_preferences([Source(source=str(path))])


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [150, 199, 250, 900, 5000])
@pytest.mark.parametrize("column", ["prompt", "chosen", "messages", "replies", "conversations", "margin", "label"])
def test_a_row_of_any_depth_is_read_or_set_aside(levels: int, column: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = GOOD.rstrip()[:-1].decode() if column not in ("prompt", "chosen") else '{"rejected": "Hat"'
    for value in (nested(levels), nested(levels - 1).replace("[]", '[{"role": "user", "content": "x"}]')):
        path.write_text(GOOD.decode() + f'{row}, "{column}": {value}}}\n', encoding="utf-8")
        source = Source(source=str(path))
        for load in (load_preferences, lambda s: load_demonstrations(s, Rows()), lambda s: load_prompts(s, Rows())):
            try:
                loaded = load([source])
            except DataError:
                continue
            assert loaded.counts()["read"] == 2
            if levels > 200:
                assert "nested deeper than 200" in loaded.set_aside[0].detail


def test_numbers_and_nesting_without_end_in_other_readers_are_one_message(tmp_path: Path) -> None:
    for content in (
        nested(5000),
        '{"a": ' * 5000,
        '{"examples": ' + "1" * 5000 + "}",
        '{"examples": ' + nested(900) + "}",
    ):
        path = tmp_path / "task.json"
        path.write_text(content)
        for load in (load_comparisons, load_preferences):
            with pytest.raises(DataError) as error:
                load([Source(source=str(path))])
            assert len(str(error.value)) < 1000


def test_a_printed_list_without_end_is_not_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    row = "[{'role': 'user', 'content': '" + "x," * 600_000
    path.write_text("prompt,chosen,rejected\nq,a,b\n" + f'"{row}",a,b\n')
    loaded = load_preferences([Source(source=str(path))])
    assert [(item.origin.row, item.reason) for item in loaded.set_aside] == [(2, "list that cannot be read")]
    assert "longer than 1,048,576 characters; write JSON" in loaded.set_aside[0].detail


def test_parquet_that_grows_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "pairs.parquet"
    text = "x" * 10_000
    columns = {"prompt": ["q"] * 3000, "chosen": [text] * 3000, "rejected": ["b"] * 3000}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")  # 30 MB in a few KB
    monkeypatch.setattr(files, "DECODED_FREELY", 2**20)
    with pytest.raises(DataError, match=r"pairs\.parquet has .* over 1000 times as much"):
        load_preferences([Source(source=str(path))])
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(bounds.Growth.__init__, "__defaults__", (200, 2**20))
    with pytest.raises(DataError, match="over 200 times as much"):
        load_preferences([Source(source=str(path))])


def test_a_long_cell_of_parquet_is_set_aside(small_bounds, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    columns = {"prompt": ["q", "q"], "chosen": ["a", "x" * 5000], "rejected": ["b", "b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    loaded = load_preferences([Source(source=str(path))])
    assert [(item.origin.row, item.reason) for item in loaded.set_aside] == [(2, "row too long")]


def test_a_file_of_millions_of_rows_of_another_kind_is_refused_before_they_fill_the_memory(
    small_bounds, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD * 50 + b"{}\n" * 2000)
    with pytest.raises(DataError, match=r"of the first 1,051 rows read as 'preference' 1,001 .*'missing field'"):
        load_preferences([Source(source=str(path))])
    path.write_bytes(GOOD * 500 + b"{}\n" * 2000)  # a fifth of it is good: it is read
    assert len(load_preferences([Source(source=str(path))]).set_aside) == 2000
    path.write_bytes(b"1\n" * 5000)
    with pytest.raises(DataError, match="wrong type"):
        load_preferences([Source(source=str(path))])


def test_a_chain_of_messages_is_cut_off_where_no_talk_goes(tmp_path: Path) -> None:
    """Each message repeats the way to it: of n in a chain, n (n + 1) / 2 turns."""
    path = tmp_path / "tree.jsonl"
    rows = [
        {"message_id": str(i), "parent_id": str(i - 1) if i else None, "text": f"text {i}", "rank": 0,
         "role": ("assistant", "prompter")[i % 2 == 0]}
        for i in range(5000)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_prompts([Source(source=str(path))], Rows())
    assert max(len(row.messages) for row in loaded.rows) < 200
    reasons = Counter(item.reason for item in loaded.set_aside)
    assert reasons["conversation too long"] == 1
    assert reasons["below a message that cannot be used"] == 4799
    assert loaded.counts()["read"] == 5000


def test_all_pairs_of_very_many_replies_are_not_made(tmp_path: Path, monkeypatch) -> None:
    assert bounds.MOST_COMPARED == 256
    for module in (rankings, trees):
        monkeypatch.setattr(module, "MOST_COMPARED", 16)

    def pairs_of(rows: list[dict], which: str) -> int:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return len(load_preferences([Source(source=str(path), pairs=which)]).rows)

    def ranked(n: int) -> list[dict]:
        return [{"prompt": "q", "responses": [f"a{i}" for i in range(n)], "scores": list(range(n))}]

    def tree(n: int) -> list[dict]:
        replies = [{"text": f"a{i}", "role": "assistant", "rank": i, "replies": []} for i in range(n)]
        return [{"prompt": {"text": "q", "role": "prompter", "replies": replies}}]

    for made in (ranked, tree):
        assert pairs_of(made(16), "all") == 16 * 15 // 2
        assert pairs_of(made(17), "best_worst") == 1
        with pytest.raises(DataError, match=r"too many replies for all pairs.*17, over 16; set pairs: best_worst"):
            pairs_of(made(17), "all")
