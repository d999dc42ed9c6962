"""Completion of ``meshnet`` for shells, as a script that is made once from the scripts' own help."""

import re
import subprocess
import sys

from meshnet import ROOT
from meshnet.errors import UserError

SHELLS = ("bash", "zsh")
RECIPES = ("--recipe", "--recipes")
FLAG = r"(?<![\w-])--[a-zA-Z][\w.-]*\w"
TEMPLATE = """# completion of meshnet for bash and zsh, made by: meshnet completion SHELL
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_meshnet() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" known=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    known="{verbs}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "$before" in {recipe_flags}) known="{recipes}" ;; esac
  fi
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _meshnet meshnet
"""


def script_for(shell: str, verbs: dict[str, tuple[str, str]]) -> str:
    """The completion script; ``verbs`` are those of ``meshnet.__main__``.

    Raises:
        UserError: for a shell that is not known.
    """
    if shell not in SHELLS:
        raise UserError(f"completion: found {shell!r}, expected one of {', '.join(SHELLS)}; type: meshnet completion "
                        "bash")
    cases = [f'      {verb}) known="{" ".join(words_of(script))}" ;;' for verb, (script, _) in verbs.items()]
    recipes = sorted(path.stem for path in (ROOT / "recipes").iterdir())
    return TEMPLATE.format(verbs=" ".join(verbs), cases="\n".join(cases), recipes=" ".join(recipes),
                           recipe_flags="|".join(RECIPES))


def words_of(script: str) -> list[str]:
    """The flags of a script, and its verbs where it has some, from what its help says."""
    shown = help_of(script, "--help_all") or help_of(script, "--help")
    names = re.findall(r"^    ([a-z_]+)  ", shown, re.MULTILINE) if "COMMAND" in shown else []
    flags = [flag for verb in names for flag in re.findall(FLAG, help_of(script, verb, "--help"))]
    return list(dict.fromkeys([*names, *re.findall(FLAG, shown), *flags]))


def help_of(script: str, *arguments: str) -> str:
    """What a script prints for its help; "" where it does not know the flag."""
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""
