"""What a batch reads from its configuration, which files it finds, and what it calls the same work."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tfl_rewrite import FileAccessError, UsageError
from tfl_rewrite.batch.config import BatchConfig, Settings, plain_config, read_config
from tfl_rewrite.batch.plan import Job, plan
from tfl_rewrite.cli import main
from tfl_rewrite.search.goals import Goal, Objective

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


def test_names_that_look_like_patterns(tree: Path) -> None:
    """What exists under that very name is meant where the pattern matches nothing."""
    shutil.copytree(tree / "a", tree / "m [v1]" / "a")
    odd = tree / "m [v1]" / "sp é[b]*.tflite"
    shutil.copy(tree / "a/one.tflite", odd)
    assert names(f"m [v1]/{odd.name}") == names(str(odd)) == [odd.name]
    assert names("m [v1]/a/**/*.tflite") == ["b/two.tflite", "one.tflite"]
    with pytest.raises(UsageError, match="is a folder"):
        names("m [v1]")
    shutil.copy(odd, tree / "m [v1]" / "sp éb-.tflite")
    assert names(f"m [v1]/{odd.name}") == ["sp éb-.tflite"]
    settings = f'[batch]\ninputs = ["{odd.name}", "a/one.tflite"]\nout = "made"\npasses = ["dedup"]\n'
    skip = f'[[file]]\nmatch = "{odd.name}"\nskip = true\n'
    (tree / "m [v1]" / "sp éb-.tflite").unlink()
    assert [job.name for job in plan(configured(tree / "m [v1]", settings))] == ["a/one.tflite", odd.name]
    assert [job.name for job in plan(configured(tree / "m [v1]", settings + skip))] == ["a/one.tflite"]


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


def test_of_a_folder_the_pattern_is_told_that_takes_its_files(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"a: is a folder; name the files in it: '/.*/a/\*\*/\*\.tflite'"):
        names("a")


def test_the_key_names_the_work(tree: Path) -> None:
    def key(**judging: object) -> str:
        return plan(plain_config(["a/one.tflite"], GIVEN, judging))[0].key

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
    assert [job.settings.judging.inputs for job in jobs] == [(str(tree / "two.npz"),), ()]
    jobs = plan(plain_config(["a/one.tflite"], GIVEN, {"inputs": ["{stem}.npz"], "missing_inputs": "fail"}))
    assert jobs[0].settings.judging.inputs == (str(tree / "one.npz"),)


def test_a_job_survives_json(tree: Path) -> None:
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
    assert (config.folder, config.jobs, config.executor) == (tree / "made", 3, "local")
    with pytest.raises(UsageError):  # a/one and c/one
        plan(config)
    shutil.rmtree(tree / "c")
    two, one = plan(config)
    assert (one.settings.preset, one.settings.passes) == ("small", ())
    assert (one.settings.judging.tolerance.min_snr, one.settings.judging.mode) == (20, "require")
    assert (two.settings.preset, two.settings.passes) == (None, ("dedup",))
    assert (two.settings.judging.tolerance.min_snr, two.settings.judging.mode) == (30, "off")


def test_a_search_is_configured_as_on_the_command_line(tree: Path) -> None:
    text = '[batch]\ninputs = ["**/*.tflite"]\nout = "made"\n'
    text += 'shrink = "objective=download,min-snr=30,encodings=int8,,float16,max-size=4KB"\n'
    text += '[[file]]\nmatch = "b/*"\nshrink = "max-nbytes=5000"\n[[file]]\nmatch = "c/*"\npreset = "small"\n'
    config = configured(tree, text.replace("**/*", "?/**/*"))
    jobs = {job.name: job.settings for job in plan(config)}
    goal = jobs["a/one.tflite"].goal
    assert goal == Goal(
        objective=Objective.DOWNLOAD, min_snr=30, encodings=("int8", "float16"), max_nbytes=4000
    )
    assert jobs["a/b/two.tflite"].goal == goal
    assert (jobs["c/one.tflite"].goal, jobs["c/one.tflite"].preset) == (None, "small")
    other = plain_config(["a/one.tflite"], {"out": "out", "shrink": "max-size=5000"}, {})
    assert plan(other)[0].settings.goal == Goal(max_nbytes=5000)
    assert Job.from_dict(json.loads(json.dumps(plan(other)[0].to_dict()))) == plan(other)[0]


def test_files_can_be_left_out(tree: Path) -> None:
    text = '[batch]\ninputs = ["**/*.tflite"]\nout = "made"\npasses = ["dedup"]\n'
    text += '[[file]]\nmatch = "one.tflite"\nskip = true\n'
    assert [job.name for job in plan(configured(tree, text))] == ["a/b/two.tflite"]


def test_the_command_line_wins(tree: Path) -> None:
    (tree / "batch.toml").write_text('[batch]\ninputs = ["a/*.tflite"]\nout = "made"\npreset = "small"\n')
    config = read_config(
        tree / "batch.toml", {"out": "other", "passes": ("dedup",), "preset": None}, {"samples": 7}
    )
    assert (config.folder, config.settings.passes, config.settings.judging.samples) == (
        tree / "other",
        ("dedup",),
        7,
    )


BATCH = '[batch]\ninputs = ["a/*.tflite"]\nout = "made"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[batch", "not TOML"),
        ('[batch]\nout = "x"\npreset = "small"', "no files"),
        ('[batch]\ninputs = ["a"]\npreset = "small"', "no folder"),
        (BATCH, "not clear what to run"),
        (BATCH + 'preset = "small"\nshrink = "min-snr=30"', "not clear what to run"),
        (BATCH + 'shrink = "effort=fast"', "no budget"),
        (BATCH + 'shrink = "min-snr=loud"', "no number"),
        (BATCH + 'shrink = "objective=beauty,min-snr=3"', "beauty"),
        # A figure of the user's own is a function, which a configuration does not call.
        (BATCH + 'shrink = "metric=os:system,min-metric=0"', "option 'metric' is unknown"),
        (BATCH + 'shrink = "min-snr=30,state=/any/file"', "option 'state' is unknown"),
        (BATCH + 'preset = "best"', "unknown"),
        (BATCH + 'passes = ["dedup:what=1"]', "option 'what' is unknown"),
        (BATCH + 'preset = "small"\nspeed = 3', "'speed' is unknown"),
        (BATCH + 'preset = "small"\njobs = -1', "jobs"),
        (BATCH + 'preset = "small"\nexecutor = "moon"', "executor"),
        (BATCH + 'preset = "small"\n[verify]\nsamples = "many"', "whole number"),
        (BATCH + 'preset = "small"\n[verify]\nmode = "perhaps"', "perhaps"),
        (BATCH + 'preset = "small"\n[verify]\ninputs = "{what}.npz"', "placeholder"),
        (BATCH + 'preset = "small"\n[[file]]\nskip = true', "match is missing"),
        (BATCH + 'preset = "small"\n[[file]]\nmatch = "*"\npreset = "best"', "best"),
        (BATCH + 'preset = "small"\n[file]\nmatch = "*"', "list of tables"),
        # A configuration may come from anywhere: it starts no program.
        (BATCH + 'preset = "small"\n[verify]\nruntime = "python:/any/program"', "starts no programs"),
        (BATCH + 'preset = "small"\n[verify]\nruntime = ["litert", "python:x"]', "on the command line"),
        (
            BATCH + 'preset = "small"\n[[file]]\nmatch = "*"\nverify.runtime = ["python:x"]',
            "starts no programs",
        ),
        (
            BATCH + 'preset = "small"\n[[file]]\nmatch = "none"\nruntime = "python:x"',
            "starts no programs",
        ),
        (BATCH + 'preset = "small"\nexecutor = "dask://127.0.0.1:8786"', "give --executor"),
        # Nor does a number of any length do more than make a line.
        (BATCH + 'preset = "small"\njobs = ' + "9" * 5000, "more than 64 bits"),
        (BATCH + 'preset = "small"\njobs = -' + "9" * 400, "more than 64 bits"),
        (BATCH + 'preset = "small"\njobs = 0x' + "f" * 5000, "more than 64 bits"),
        (BATCH + 'preset = "small"\njobs = 99999', "jobs is 99999; give 0 or more, 1,024 at most"),
        (BATCH + 'preset = "small"\n[verify]\nsamples = 1000000000', "10,000 at most"),
        (BATCH + 'preset = "small"\n[verify]\nsamples = [[' + "9" * 30 + "]]", "more than 64 bits"),
        (BATCH + 'preset = "small"\n[verify]\nseed = -1', "seed is -1"),
        (BATCH + 'preset = "small"\n[verify]\nmin_snr = nan', "min_snr is nan"),
        (BATCH + 'preset = "small"\n[verify]\nmin_snr = inf', "min_snr is inf"),
        (BATCH + 'preset = "small"\n[verify]\nmin_agreement = nan', "min_agreement is nan"),
        (BATCH + 'preset = "small"\n[verify]\ntimeout = inf', "timeout is inf"),
        (BATCH + 'preset = "small"\n[verify]\ntimeout = 1e300', "timeout is 1e[+]300"),
        (
            BATCH + 'preset = "small"\n[verify]\nmemory_limit = "' + "9" * 5000 + 'GB"',
            "is not a number of bytes|is not an",
        ),
        (BATCH + 'passes = ["quantize-weights:min-runtime=' + "9" * 5000 + '.1"]', "is not a version"),
        (BATCH + 'passes = ["quantize-weights:granularity=block:' + "9" * 5000 + '"]', "granularity"),
        (BATCH + 'passes = ["quantize-weights:granularity=block:²"]', "granularity"),
        (BATCH + 'passes = ["quantize-weights:map=a=int4:block:' + "9" * 5000 + '"]', "how large a block"),
        (BATCH + 'passes = ["quantize-weights:min-elements=' + "9" * 4000 + '"]', "more than 20 digits"),
        (BATCH + 'passes = ["round-weights:steps=' + "9" * 4000 + '"]', "more than 20 digits"),
        (BATCH + 'passes = ["compact:align=' + "9" * 4000 + '"]', "align"),
        (BATCH + 'preset = "small"\njobs = ' + "[" * 100_000, "nests too deep"),
        (BATCH + "a." * 100_000 + "b = 1", "more than 200 parts"),
        # Three words are replaced, and nothing is made of what stands beside them.
        (BATCH + 'preset = "small"\n[verify]\ninputs = ["{stem:>3000000000}"]', "placeholder"),
        (BATCH + 'preset = "small"\n[verify]\ninputs = ["{stem.__class__}"]', "placeholder"),
        (BATCH + 'preset = "small"\n[verify]\ninputs = ["{stem!r}"]', "placeholder"),
        (BATCH + 'preset = "small"\n[verify]\ninputs = ["{}"]', "placeholder"),
        (BATCH + 'preset = "small"\n[verify]\ninputs = ["{0}"]', "placeholder"),
    ],
)
def test_what_does_not_fit_says_so(
    tree: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        configured(tree, text)
    assert main(["batch", str(tree / "batch.toml")]) == caught.value.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 5000


def test_placeholders_are_replaced_once(tree: Path) -> None:
    """Braces in names are no placeholders."""
    (tree / "a" / "{folder}.tflite").write_bytes((tree / "a" / "one.tflite").read_bytes())
    (tree / "a" / "{{stem}.npz").mkdir()
    text = BATCH + 'preset = "small"\n[verify]\nmissing_inputs = "fail"\n'
    config = configured(tree, text + 'inputs = ["{folder}/{stem}{.npz", "{stem}}-{name}"]')
    (job,) = [job for job in plan(config) if "{" in job.name]
    folder = tree / "a"
    assert job.settings.judging.inputs == (
        f"{folder}/{{folder}}{{.npz",
        f"{tree}/{{folder}}}}-{{folder}}.tflite",
    )


def test_any_depth_is_looked_for_once(tree: Path) -> None:
    pattern = str(tree / "/".join(["**"] * 40) / "a" / "**" / "*.tflite")
    config = plain_config([pattern], {"out": "o", "preset": "small"}, {})
    started = time.process_time()
    assert sorted(Path(job.source).stem for job in plan(config)) == ["one", "two"]
    assert time.process_time() - started < 5


def test_a_runtime_of_the_command_line_is_taken(tree: Path) -> None:
    (tree / "batch.toml").write_text(BATCH + 'preset = "small"\n[verify]\nruntime = "litert"\n')
    config = read_config(tree / "batch.toml", {}, {"runtime": ["python:/usr/bin/python3"]})
    assert config.settings.judging.runtime == ("python:/usr/bin/python3",)


def test_a_file_that_is_not_there(tree: Path) -> None:
    with pytest.raises(FileAccessError):
        read_config(tree / "none.toml", {}, {})


def test_settings_change_by_name() -> None:
    assert Settings().changed({"passes": ["dedup"]}, "here").checked().passes == ("dedup",)
    with pytest.raises(UsageError, match="here"):
        Settings().changed({"colour": "red"}, "here")
