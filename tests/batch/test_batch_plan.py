"""What a batch reads from its configuration, which files it finds, and what it calls the same work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tfl_rewrite import FileAccessError, FormatError, UsageError
from tfl_rewrite.batch.config import BatchConfig, plain_config, read_config
from tfl_rewrite.batch.plan import Job, plan
from tfl_rewrite.batch.settings import Settings

GIVEN = {"out": "out", "passes": ("dedup",)}


@pytest.fixture
def tree(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/one.tflite", "a/b/two.tflite", "c/one.tflite"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(fixtures / "dense.tflite", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*patterns: str, **more: object) -> list[str]:
    return [job.name for job in plan(plain_config(patterns, {**GIVEN, **more}, {}))]


def configured(folder: Path, text: str) -> BatchConfig:
    path = folder / "batch.toml"
    path.write_text(text)
    return read_config(path, {}, {})


def test_folders_below_the_start_of_a_pattern_are_kept(tree: Path) -> None:
    assert names("a/**/*.tflite") == ["b/two.tflite", "one.tflite"]
    assert names("**/*.tflite") == ["a/b/two.tflite", "a/one.tflite", "c/one.tflite"]
    assert names("a/*.tflite") == ["one.tflite"]


def test_folders_below_what_plain_paths_share_are_kept(tree: Path) -> None:
    assert names("a/one.tflite", "c/one.tflite") == ["a/one.tflite", "c/one.tflite"]
    assert names("a/one.tflite") == ["one.tflite"]


def test_a_file_is_taken_once_and_outputs_are_no_inputs(tree: Path) -> None:
    (tree / "out").mkdir()
    shutil.copy(tree / "a/one.tflite", tree / "out/one.tflite")
    assert names("**/*.tflite", "a/**/*.tflite") == ["a/b/two.tflite", "a/one.tflite", "c/one.tflite"]


def test_two_inputs_of_one_output_are_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match="two inputs would become"):
        names("a/*.tflite", "c/*.tflite")


def test_an_output_that_is_an_input_is_refused(tree: Path) -> None:
    (tree / "out").symlink_to(tree / "a")
    with pytest.raises(UsageError, match="would be an output"):
        names("a/*.tflite")


@pytest.mark.parametrize("pattern", ["nothing/*.tflite", "nothing.tflite"])
def test_nothing_to_do_is_a_usage_error(tree: Path, pattern: str) -> None:
    with pytest.raises(UsageError):
        names(pattern)


def test_the_key_names_the_work(tree: Path) -> None:
    def key(**verification: object) -> str:
        return plan(plain_config(["a/one.tflite"], GIVEN, verification))[0].key

    assert key() == key()
    keys = {key(), key(samples=2)}
    (tree / "one.npz").write_bytes(b"first")
    keys.add(key(inputs=["{stem}.npz"]))
    (tree / "one.npz").write_bytes(b"second")
    keys.add(key(inputs=["{stem}.npz"]))
    (tree / "a/one.tflite").write_bytes(b"other")
    keys.add(key())
    assert len(keys) == 5


def test_inputs_of_each_file(tree: Path) -> None:
    (tree / "two.npz").write_bytes(b"")
    jobs = plan(plain_config(["a/**/*.tflite"], GIVEN, {"inputs": ["{stem}.npz"]}))
    assert [job.settings.inputs for job in jobs] == [(str(tree / "two.npz"),), ()]
    jobs = plan(plain_config(["a/one.tflite"], GIVEN, {"inputs": ["{stem}.npz"], "missing_inputs": "fail"}))
    assert jobs[0].settings.inputs == (str(tree / "one.npz"),)


def test_a_job_survives_json(tree: Path) -> None:
    import json

    job = plan(plain_config(["a/one.tflite"], {"out": "out", "preset": "small"}, {"max_abs_error": 0.5}))[0]
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


def test_a_configuration_file(tree: Path) -> None:
    config = configured(
        tree,
        """
        [batch]
        inputs = ["a/**/*.tflite", "c/*.tflite"]
        out = "made"
        preset = "small"
        jobs = 3
        [verify]
        mode = "require"
        min_snr = 20
        [[file]]
        match = "b/*"
        passes = ["dedup"]
        verify.min_snr = 30
        verify.mode = "off"
        """,
    )
    assert (config.out, config.jobs, config.executor) == (tree / "made", 3, "local")
    with pytest.raises(UsageError):  # a/one and c/one
        plan(config)
    shutil.rmtree(tree / "c")
    two, one = plan(config)
    assert (one.settings.preset, one.settings.passes) == ("small", ())
    assert (one.settings.min_snr, one.settings.verify) == (20, "require")
    assert (two.settings.preset, two.settings.passes) == (None, ("dedup",))
    assert (two.settings.min_snr, two.settings.verify) == (30, "off")


def test_files_can_be_left_out(tree: Path) -> None:
    text = '[batch]\ninputs = ["**/*.tflite"]\nout = "made"\npasses = ["dedup"]\n'
    text += '[[file]]\nmatch = "one.tflite"\nskip = true\n'
    assert [job.name for job in plan(configured(tree, text))] == ["a/b/two.tflite"]


def test_the_command_line_wins(tree: Path) -> None:
    (tree / "batch.toml").write_text('[batch]\ninputs = ["a/*.tflite"]\nout = "made"\npreset = "small"\n')
    config = read_config(
        tree / "batch.toml", {"out": "other", "passes": ("dedup",), "preset": None}, {"samples": 7}
    )
    assert (config.out, config.settings.passes, config.settings.samples) == (tree / "other", ("dedup",), 7)


BATCH = '[batch]\ninputs = ["a/*.tflite"]\nout = "made"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[batch", "no TOML"),
        ('[batch]\nout = "x"\npreset = "small"', "no files"),
        ('[batch]\ninputs = ["a"]\npreset = "small"', "no folder"),
        (BATCH, "nothing to run"),
        (BATCH + 'preset = "best"', "unknown"),
        (BATCH + 'passes = ["dedup:what=1"]', "no option"),
        (BATCH + 'preset = "small"\nspeed = 3', "'speed' is unknown"),
        (BATCH + 'preset = "small"\njobs = -1', "jobs"),
        (BATCH + 'preset = "small"\nexecutor = "moon"', "executor"),
        (BATCH + 'preset = "small"\n[verify]\nsamples = "many"', "whole number"),
        (BATCH + 'preset = "small"\n[verify]\nmode = "perhaps"', "perhaps"),
        (BATCH + 'preset = "small"\n[verify]\ninputs = "{what}.npz"', "placeholder"),
        (BATCH + 'preset = "small"\n[[file]]\nskip = true', "match is missing"),
        (BATCH + 'preset = "small"\n[[file]]\nmatch = "*"\npreset = "best"', "best"),
        (BATCH + 'preset = "small"\n[file]\nmatch = "*"', "list of tables"),
    ],
)
def test_what_does_not_fit_says_so(tree: Path, text: str, says: str) -> None:
    with pytest.raises((UsageError, FormatError), match=says):
        configured(tree, text)


def test_a_file_that_is_not_there(tree: Path) -> None:
    with pytest.raises(FileAccessError):
        read_config(tree / "none.toml", {}, {})


def test_settings_change_by_name() -> None:
    assert Settings().changed({"passes": ["dedup"]}, "here").checked().passes == ("dedup",)
    with pytest.raises(UsageError, match="here"):
        Settings().changed({"colour": "red"}, "here")
