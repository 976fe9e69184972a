"""Faults planted in what keeps a run, for tests/mutants.py: name of the test, what, file, old, new, tests."""

FINITE, CHECKPOINTS = "tests/faults/test_not_finite.py", "tests/faults/test_checkpoints.py"
STAGES = "tests/pipeline/test_stage_resume.py"

OF_RECOVERY = [
    ("fault_24", "the step is taken though its gradient is not finite", "finite.py",
     "parameter.grad = None  # AdamW passes over it", "pass  # AdamW passes over it", FINITE),
    ("fault_24", "steps are skipped without end", "finite.py", "if self.in_a_row >= IN_A_ROW:", "if False:", FINITE),
    ("fault_24", "a sound step does not begin the count anew", "finite.py",
     "            self.in_a_row = 0\n", "            pass\n", FINITE),
    ("fault_23", "an infinite loss passes", "finite.py",
     "if not torch.isfinite(loss).all():", "if torch.isnan(loss).any():", FINITE),
    ("reach_no_checkpoint", "weights go into a checkpoint as they are", "checkpoints.py",
     "check_weights(self.model, f\"the checkpoint", "repr(f\"the checkpoint", FINITE),
    ("damaged_checkpoint_is_named", "a file that has changed is not noticed", "checkpoints.py",
     'if known != seal["files"].get(name, known)', "if False", CHECKPOINTS),
    ("fault_15", "without a whole checkpoint training begins anew", "checkpoints.py",
     "    if not usable and wrong:\n", "    if False:\n", CHECKPOINTS),
    ("fault_15", "weights may be missing", "checkpoints.py",
     "return any(Path(name).match(pattern) for pattern in SPARED)", "return True", CHECKPOINTS),
    ("fault_10", "what was written of a checkpoint stays", "checkpoints.py",
     "shutil.rmtree(checkpoint, ignore_errors=True)", "pass", CHECKPOINTS),
    ("fault_11", "a log that cannot be written ends the training", "training.py",
     "    except OSError as error:\n        if log not in",
     "    except ZeroDivisionError as error:\n        if log not in", CHECKPOINTS),
    ("fault_03", "a checkpoint is sealed before it is written", "checkpoints.py",
     "            super()._save_checkpoint(model, trial)  # type: ignore[misc]\n",
     "            checkpoint.mkdir()\n            seal(checkpoint, self._own_state())\n"
     "            super()._save_checkpoint(model, trial)  # type: ignore[misc]\n", CHECKPOINTS),
    ("fault_03", "the old checkpoint goes before the new one is there", "checkpoints.py",
     "        limit, self.args.save_total_limit = self.args.save_total_limit, None\n",
     "        limit, self.args.save_total_limit = self.args.save_total_limit, None\n"
     "        [shutil.rmtree(old) for old in all_in(folder) if limit == 1]\n", CHECKPOINTS),
    ("fault_18", "half a stage of another recipe is deleted", "run_folder.py",
     "        if not _has_progress(partial):\n", "        if True:\n", STAGES),
    ("fault_18", "--from goes on with what it should begin anew", "run_folder.py",
     "        moved += [f\"partial-{name}\" for name in stages if _has_progress(self._partial(name))]\n", "", STAGES),
    ("fault_18", "how often something is saved makes a stage another", "pipeline.py",
     "return {key: value for key, value in section.items() if key not in OF_NO_EFFECT}", "return section", STAGES),
    ("reward_models_go_on", "the length's weight begins anew", "stages/reward.py",
     'self.length_weight = state["length_weight"]', "pass", STAGES),
    ("reward_models_go_on", "a checkpoint between two log lines loses what the second is to average over",
     "checkpoints.py", "control.should_log |= control.should_save", "pass", STAGES),
    ("goes_on", "what was said of the whole training is said twice", "checkpoints.py",
     " or SUMMARY in known", "", STAGES),
]  # fmt: skip
