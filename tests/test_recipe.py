"""Recipes and flags: the guide's own blocks, precedence, and one line for each mistake."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from meshnet.config import Config, identity, resolve, to_dict
from meshnet.errors import UserError
from meshnet.mapping import dump, strip_json_comments
from meshnet.recipe import dump_config, find_recipe, load_recipes, load_search, parse, read_mapping

GUIDE = {
    "guide_adamw": {"optimizer.name": "AdamW", "optimizer.lr": 1e-4, "optimizer.betas": [0.9, 0.999],
                    "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.01, "optimizer.amsgrad": False},
    "guide_plateau": {"scheduler.name": "ReduceLROnPlateau", "scheduler.mode": "max", "scheduler.factor": 0.5,
                      "scheduler.patience": 10, "scheduler.threshold": 1e-4, "scheduler.threshold_mode": "rel",
                      "scheduler.cooldown": 5, "scheduler.min_lr": 1e-7, "scheduler.verbose": True},
    "guide_adamw_plateau": {"optimizer.lr": 1e-4, "scheduler.factor": 0.5, "scheduler.patience": 10},
    "guide_clipping": {"training.gradient_clipping": True, "training.max_grad_norm": 1.0},
    "guide_quick": {"optimizer.lr": 3e-4, "scheduler.patience": 3, "scheduler.min_lr": 1e-6, "training.max_epochs": 20},
    "guide_production": {"optimizer.lr": 1e-4, "scheduler.patience": 15, "scheduler.cooldown": 5,
                         "training.max_epochs": 200, "training.early_stopping": True,
                         "training.early_stopping_patience": 50},
    "guide_unetr": {"optimizer.lr": 5e-5, "optimizer.weight_decay": 0.05, "scheduler.patience": 20,
                    "training.max_epochs": 300, "training.warmup_epochs": 10},
    "guide_finetune": {"optimizer.lr": 1e-5, "optimizer.weight_decay": 0.001, "scheduler.factor": 0.3,
                       "training.max_grad_norm": 0.5},
    "guide_cosine": {"scheduler.name": "cosine", "scheduler.T_max": 100, "scheduler.eta_min": 1e-7},
}


@pytest.mark.parametrize("name", GUIDE)
def test_guide_block_loads_as_written(name, root):
    flat = identity(resolve(load_recipes([root / f"recipes/{name}.json"]))) | {"scheduler.verbose": True}
    assert {key: flat[key] for key in GUIDE[name]} == GUIDE[name]


def test_every_json_block_of_the_guide_ships_as_it_stands(root):
    seeds = root.parent / "shared" / "seeds"
    if not seeds.is_dir():
        pytest.skip(f"the guide was not found at {seeds}")
    blocks = [block for path in sorted(seeds.glob("*.txt"))
              for block in re.findall(r"```json\n(.*?)\n```", path.read_text(encoding="utf-8"), re.DOTALL)]
    shipped = {path.stem: re.sub(r"^(//.*\n)*", "", path.read_text(encoding="utf-8")).strip()
               for path in (root / "recipes").glob("guide_*.json")}
    assert len(blocks) == len(shipped) == len(GUIDE) == 9
    assert sorted(blocks) == sorted(shipped.values())


PAPER_BASELINE = {"optimizer.name": "AdamW", "optimizer.lr": 1e-3, "optimizer.weight_decay": 3e-5,
                  "optimizer.eps": 1e-4, "training.batch_size": 1, "training.max_epochs": 50,
                  "scheduler.name": "OneCycleLR", "scheduler.pct_start": 0.01, "scheduler.anneal_strategy": "cos",
                  "scheduler.div_factor": 100, "loss.name": "ce", "loss.background_weight": 0.5,
                  "loss.lesion_weight": 1.0, "loss.label_smoothing": 0.01}


@pytest.mark.parametrize("name", ["baseline", "meshnet5", "meshnet16", "meshnet26", "segresnet", "unetr", "vnet",
                                  "unet", "residual_unet", "swin_unetr", "mednext_s", "mednext_b", "mednext_m",
                                  "umamba_bot", "umamba_enc", "ukan"])
def test_the_papers_table_of_settings_is_in_every_recipe(name, root):
    flat = identity(resolve(load_recipes([root / f"recipes/{name}.yaml"])))
    assert {key: flat[key] for key in PAPER_BASELINE} == PAPER_BASELINE


def test_the_likely_optimum_of_meshnet26_is_its_second_recipe(root):
    flat = identity(resolve(load_recipes([root / "recipes/meshnet26_tuned.yaml"])))
    assert flat["model.channels"] == 26 and 0.01 <= flat["optimizer.lr"] <= 0.02
    assert 0.01 <= flat["optimizer.weight_decay"] <= 0.02 and flat["loss.background_weight"] == 0.5
    assert flat["scheduler.pct_start"] in (0.02, 0.1)


def test_every_recipe_is_valid_and_says_something(root):
    for path in sorted((root / "recipes").glob("*")):
        config = resolve(load_recipes([path]))
        assert config.optimizer.lr > 0
        assert path.read_text().startswith(("#", "//")), f"{path} does not say what it should reach"


def flags(*arguments):
    return parse("train.py", "", lambda parser: parser.add_argument("--data"), [str(a) for a in arguments])


def test_defaults_below_files_below_flags(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.json"
    first.write_text("optimizer: {lr: 1e-3, weight_decay: 0.1}\nscheduler: {patience: 3}\n")
    second.write_text('{"optimizer": {"lr": 2e-3}}')
    found, config = flags("--recipe", first, second, "--optimizer.lr", "0.5", "--data", "d")
    assert found.data == "d"
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.scheduler.patience) == (0.5, 0.1, 3)
    assert flags("--recipe", first, second)[1].optimizer.lr == 2e-3  # YAML reads 1e-3 as a text, the config does not


def test_both_spellings_of_an_override_agree():
    one = flags("--override", "optimizer.lr=0.0003", "scheduler.patience=5")[1]
    assert one == flags("--optimizer.lr", "0.0003", "--scheduler.patience", "5")[1]
    groups = flags("--override", "optimizer.param_groups=[{match: blocks, lr: 1e-5}]")[1].optimizer.param_groups
    assert groups == [{"match": "blocks", "lr": 1e-5}]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--optimizer.lr", "a"], ["--optimizer.lr", "'a'"]),
    (["--optimizer.lr", "-1"], ["--optimizer.lr", "-1", "above 0"]),
    (["--optimizer.lrr", "1"], ["--optimizer.lrr"]),
    (["--model.norm", "layer"], ["--model.norm", "layer", "instance"]),
    (["--override", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean 'lr'"]),
    (["--override", "optimiser.lr=1"], ["optimiser", "did you mean 'optimizer'"]),
    (["--override", "lr=1"], ["lr=1", "section.field=value"]),
    (["--override", "training.max_epochs=2.5"], ["training.max_epochs", "2.5", "whole number"]),
    (["--override", "training.early_stopping=1"], ["early_stopping", "true or false"]),
    (["--override", "model.dilations=[1, 0]"], ["model.dilations", "at least 1"]),
    (["--training.warmup_epochs", "50"], ["training.warmup_epochs", "50", "fewer"]),
    (["--optimizer.betas", "0.9"], ["optimizer.betas", "two"]),
    (["--scheduler.max_lr", "0.1", "--optimizer.lr", "0.2"], ["scheduler.max_lr", "0.1", "0.2"]),
    (["--override", "optimizer.param_groups=[{lr: 1}]"], ["param_groups[0]", "match"]),
    (["--scheduler.monitor", "val_dcie"], ["scheduler.monitor", "val_dcie", "val_dice"]),
    (["--scheduler.monitor", "val_dice_ema"], ["scheduler.monitor", "ema.enabled"]),
    (["--recipe", "/nowhere.yaml"], ["/nowhere.yaml", "no such recipe"]),
])
def test_a_wrong_flag_is_one_line(arguments, words):
    with pytest.raises(UserError) as error:
        flags(*arguments)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("name", "text", "words"), [
    ("a.yaml", "optimizer: {learning_rate: 1}", ["learning_rate", "a.yaml"]),
    ("a.yaml", "optimizer: 3", ["optimizer", "3"]),
    ("a.yaml", "- 1", ["list", "sections"]),
    ("a.yaml", "optimizer: {lr: fast}", ["a.yaml", "optimizer.lr", "'fast'"]),
    ("a.yaml", "optimizer: {name: SGD}", ["optimizer.name", "SGD", "AdamW"]),
    ("a.yaml", "optimizer: {lr: [1]", ["a.yaml", "line"]),
    ("a.json", '{"optimizer": {"lr": 1,}}', ["a.json", "line 1"]),
    ("a.json", '{"scheduler": {"mode": "up"}}', ["scheduler.mode", "up", "max, min"]),
    ("a.yaml", "optimizer: {lr: .nan}", ["optimizer.lr", "nan"]),
    ("a.yaml", "optimizer: {betas: [0.9, x]}", ["optimizer.betas[1]", "x"]),
    ("a.yaml", "training: {max_epochs: true}", ["max_epochs", "True", "whole number"]),
    ("a.yaml", "tracking: {trackers: [comet]}", ["trackers", "comet"]),
])
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipes([path])
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_empty_files_change_nothing(tmp_path):
    for name, text in (("a.yaml", ""), ("b.yaml", "# only a comment\n"), ("c.json", "// nothing\n{}")):
        (tmp_path / name).write_text(text)
        assert load_recipes([tmp_path / name]) == Config()


def test_json_comments_go_and_strings_stay():
    text = '{"a": "http://x", /* two\nlines */ "b": 1} // end'
    assert json.loads(strip_json_comments(text)) == {"a": "http://x", "b": 1}
    assert strip_json_comments(text).count("\n") == text.count("\n")  # error positions stay true


def test_a_search_section_is_handed_through(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("search: {lr: 'loguniform(1e-4, 4e-2)'}\n")
    assert load_recipes([path]) == Config()
    assert load_search([path]) == {"lr": "loguniform(1e-4, 4e-2)"}


def test_the_dumped_config_is_a_recipe_of_itself(tmp_path):
    config = resolve(Config())
    config.optimizer.param_groups = [{"match": "head", "lr": 0.1}]
    path = tmp_path / "config.yaml"
    path.write_text(dump({"run": {"fold": 0}, **to_dict(config)}))
    assert yaml.safe_load(path.read_text())["run"] == {"fold": 0}
    assert resolve(load_recipes([path])) == config
    assert read_mapping(path)["run"]["fold"] == 0


OLD = "scheduler: {name: OneCycleLR, max_lr: null, monitor: val_dice, mode: max}\noptimizer: {lr: 0.001}\n"


@pytest.mark.parametrize(("text", "given", "monitor", "mode"), [
    # what earlier versions saved: both are there, although nobody set them
    (OLD, ["--scheduler.monitor", "val_loss"], "val_loss", "min"),
    (OLD, ["--scheduler.monitor=val_avd"], "val_avd", "min"),
    (OLD, ["--override", "scheduler.monitor=val_loss"], "val_loss", "min"),
    (OLD, ["--scheduler.mode", "min"], "val_loss", "min"),
    (OLD, ["--scheduler.monitor", "val_mcc"], "val_mcc", "max"),
    (OLD.replace("val_dice, mode: max", "val_loss, mode: min"), ["--scheduler.monitor", "val_dice"], "val_dice", "max"),
    ("scheduler: {mode: min}\n", ["--scheduler.monitor", "val_mcc"], "val_mcc", "max"),
    # what a person said stays
    ("scheduler: {monitor: val_loss}\n", [], "val_loss", "min"),
    ("scheduler: {monitor: val_loss, mode: max}\n", ["--optimizer.lr", "0.1"], "val_loss", "max"),
    (OLD, ["--scheduler.mode", "max", "--override", "scheduler.monitor=val_loss"], "val_loss", "max"),
])
def test_the_direction_follows_the_metric_that_is_set_on_top(tmp_path, text, given, monitor, mode):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    config = flags("--recipe", path, *given)[1]
    assert (config.scheduler.monitor, config.scheduler.mode) == (monitor, mode)
    # and in a file on top
    if given and "--override" not in given and "=" not in given[0]:
        top = tmp_path / "top.yaml"
        top.write_text(dump({"scheduler": {given[0].split(".")[1]: given[1]}}) if "scheduler" in given[0] else "")
        config = flags("--recipe", path, top)[1]
        assert (config.scheduler.monitor, config.scheduler.mode) == (monitor, mode)


@pytest.mark.parametrize(("begun", "more", "expected"), [
    ([], ["--scheduler.monitor", "val_loss"], ("val_loss", "min", 0.001)),
    ([], ["--scheduler.mode", "min"], ("val_loss", "min", 0.001)),
    ([], ["--scheduler.max_lr", "0.02"], ("val_dice", "max", 0.02)),
    (["--scheduler.max_lr", "0.5"], [], ("val_dice", "max", 0.5)),
    (["--scheduler.max_lr", "0.5"], ["--scheduler.max_lr", "0.02"], ("val_dice", "max", 0.02)),
    (["--scheduler.monitor", "val_avd"], ["--scheduler.monitor", "val_dice"], ("val_dice", "max", 0.001)),
])
def test_a_saved_configuration_says_what_was_set_and_no_more(tmp_path, begun, more, expected):
    path = tmp_path / "saved.yaml"
    first = flags(*begun)[1]
    path.write_text(dump_config(first, {"run": {"fold": 0}}))
    assert flags("--recipe", path)[1] == first
    config = flags("--recipe", path, *more)[1]
    assert (config.scheduler.monitor, config.scheduler.mode, config.optimizer.lr) == expected
    path.write_text(dump_config(config))  # and once more
    assert flags("--recipe", path)[1] == config


def test_a_saved_configuration_tells_in_a_comment_what_followed():
    text = dump_config(flags("--scheduler.monitor", "val_loss")[1])
    assert text.endswith("# follows from the rest: optimizer.lr: 0.001, scheduler.mode: min, training.score_at: half\n")
    found = yaml.safe_load(text)
    assert found["scheduler"]["monitor"] == "val_loss"
    assert found["scheduler"]["mode"] is None and found["optimizer"]["lr"] is None


def test_help_answers_without_torch(root):
    code = ("import sys, runpy; sys.argv = ['train.py', '--help_all']\n"
            "try: runpy.run_path('train.py', run_name='__main__')\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'datasets' not in sys.modules")
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--optimizer.weight_decay" in found.stdout


@pytest.mark.parametrize("script", ["search.py", "train.py"])
@pytest.mark.parametrize("flag", ["--help", "--help_all"])
def test_help_does_not_speak_of_the_configurations_own_class(root, script, flag):
    found = subprocess.run([sys.executable, script, flag], cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "Config [" not in found.stdout and "whole run" not in found.stdout


def test_help_shows_types_as_people_write_them(root):
    found = subprocess.run([sys.executable, "train.py", "--help_all"], cwd=root, capture_output=True, text=True,
                           check=True)
    for line in ("--model.patch INT ...", "--model.norm_affine, --model.nonorm_affine", "--optimizer.lr NUMBER",
                 "--fold INT", "--optimizer.betas NUMBER ...", "window,null}"):
        assert line in found.stdout
    assert not re.search(r"--\S+ (\[?(int|float|str|bool)\b|list\b|dict\b)", found.stdout)


def test_a_recipe_of_the_program_is_found_by_its_bare_name(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("meshnet16") == str(root / "recipes/meshnet16.yaml")
    found, config = parse("train.py", "", lambda parser: None, ["--recipe", "meshnet16", "guide_quick"])
    assert config.model.channels == 16 and config.training.max_epochs == 20
    assert found.recipe == [str(root / "recipes/meshnet16.yaml"), str(root / "recipes/guide_quick.json")]
    with pytest.raises(UserError, match=r"--recipes meshnet17: found neither .*; did you mean 'meshnet16'\?"):
        find_recipe("meshnet17", "--recipes")
    (tmp_path / "meshnet16").write_text("model: {channels: 7}")  # a file of the user's own comes first
    assert find_recipe("meshnet16") == "meshnet16"
    (tmp_path / "demo").mkdir()  # as make demo leaves it
    assert find_recipe("demo") == str(root / "recipes/demo.yaml")
    assert find_recipe("other/meshnet16") == "other/meshnet16" and find_recipe("mine.yaml") == "mine.yaml"


def test_a_flag_that_is_nearly_right_is_guessed():
    with pytest.raises(UserError, match=r"unrecognized arguments: --optimizer.lrr 1; did you mean --optimizer.lr\?"):
        parse("train.py", "", lambda parser: None, ["--optimizer.lrr", "1"])
    with pytest.raises(UserError, match=r"invalid choice: 'Adamw' .*; did you mean AdamW\?"):
        parse("train.py", "", lambda parser: None, ["--optimizer.name", "Adamw"])


SLIPS = {  # as people type who know other programs, and what they are told
    "--epochs": "--training.max_epochs", "--modle": "--model.name", "--lr": "--optimizer.lr",
    "--learning_rate": "--optimizer.lr", "--batch-size": "--training.batch_size", "--bs": "--training.batch_size",
    "--max_epoch": "--training.max_epochs", "--run-dir": "--run_dir", "--output": "--run_dir",
    "--checkpoint": "--init", "--pretrained": "--init", "--num_workers": "--data.workers",
    "--patience": "--training.early_stopping_patience or --scheduler.patience",
    "--warmup": "--training.warmup_epochs or --scheduler.pct_start or --ema.warmup", "--dropout": "--model.dropout",
    "--optimiser": "--optimizer.name", "--training.epochs": "--training.max_epochs", "--training.lr": "--optimizer.lr",
    "--model.chanels": "--model.channels", "--dry-run": "--dry_run", "--precison": "--training.precision",
    "--background": "--loss.background_weight", "--early_stop": "--training.early_stopping",
    "--weight-decay": "--optimizer.weight_decay", "--loss": "--loss.name", "--flod": "--fold",
    "--network": "--model.name", "--model": "--model.name or --init",
    "--amp": "--training.precision", "-epochs": "--training.max_epochs", "--zzz": "",
}


def test_what_people_type_is_guessed():
    """With the flags of train.py that are not of the configuration."""
    def add_flags(parser):
        for name in ("data", "run_dir", "init", "fold", "stop_epoch", "dry_run", "seed"):
            parser.add_argument(f"--{name}")

    assert len(SLIPS) == 31
    for given, meant in SLIPS.items():
        with pytest.raises(UserError) as end:
            parse("train.py", "", add_flags, [given, "5"])
        told = str(end.value).partition("; did you mean ")[2].partition("?")[0]
        assert told == meant, f"{given}: {told}"
    for key, name in (("epochs", "max_epochs"), ("batch", "batch_size"), ("amp", "precision")):
        with pytest.raises(UserError, match=f"unknown key 'training.{key}'; did you mean '{name}'"):
            parse("train.py", "", add_flags, ["--override", f"training.{key}=5"])


def test_a_slip_is_guessed_where_a_flag_is_missing_as_well():
    import crossval
    import infer

    for script, given, words in ((crossval, "--output", "required: --out; found --output, did you mean --out?; see"),
                                 (infer, "--gpu", "arguments: --gpu; did you mean --device?; see"),
                                 (infer, "--modle", "did you mean --model?"), (infer, "--force", "mean --overwrite?")):
        with pytest.raises(UserError) as end:
            script.make_parser().parse_args([given])
        assert words in str(end.value)
