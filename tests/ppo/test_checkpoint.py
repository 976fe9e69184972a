"""Logs that go back with a checkpoint, and checkpoints that are whole or not there."""

import json

from llm_rlhf import checkpoints


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint_and_of_it(tmp_path) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 10}) for step in (0, 4, 8, 8, 9, 12)]
    log.write_text("\n".join([*lines, '{"step": 8, "lo']))  # the last one was cut off in writing
    checkpoints.forget_after(log, 8)
    assert log.read_text() == "\n".join(lines[:4]) + "\n"
    checkpoints.forget_after(tmp_path / "never written.jsonl", 8)
    assert not (tmp_path / "never written.jsonl").exists()


def test_the_newest_whole_checkpoint_is_found_and_older_ones_are_rotated_out(tmp_path) -> None:
    for step in (4, 8, 12, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(f"of step {step}")
        checkpoints.seal(folder, {"step": step})
    (tmp_path / "checkpoint-100" / "weights").write_text("of step 10!")  # as long, another content
    newest = checkpoints.latest(tmp_path)
    assert newest is not None
    assert newest.path == tmp_path / "checkpoint-12"
    assert newest.state == {"step": 12}
    (newest.path / "complete.json").unlink()
    assert checkpoints.latest(tmp_path).path == tmp_path / "checkpoint-8"
    checkpoints.rotate(tmp_path, 2)
    assert [path.name for path in checkpoints.all_in(tmp_path)] == ["checkpoint-8", "checkpoint-100"]
