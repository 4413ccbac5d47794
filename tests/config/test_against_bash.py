"""Scripts as people write them, run by bash with programs that only record their arguments, and read by us."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from swift_toolkit.config.scripts.script import _arguments, all_commands, from_command
from swift_toolkit.problems import RequestError

VARIABLES = ("CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "MASTER_PORT", "FOO")
RECORD = """#!/bin/bash
printf '%s\\0' "$@" > "$RECORDED.$$"
printf '\\1' >> "$RECORDED.$$"
for name in CUDA_VISIBLE_DEVICES NPROC_PER_NODE MASTER_PORT FOO; do
    [ -n "${!name+x}" ] && printf '%s\\0' "$name=${!name}" >> "$RECORDED.$$"
done
true
"""
END = "swift sft --model a/b --dataset c.jsonl"
SCRIPTS = [
    f"cat > train.yaml <<EOF\nmodel: a/b\nit's: here\nEOF\n{END}",
    f"cat <<'EOF' > data.jsonl\n{{\"query\": \"swift sft --model x\"}}\nEOF\n{END}",
    f"cat <<-EOF > x\n\tdon't\n\tEOF\n{END}",
    f"# swift sft --model z\n: <<'C'\nswift sft --model y\nC\n{END}",
    f"bash <<EOF\n{END}\nEOF",
    f"set -euo pipefail\n{END} 2>&1 | tee -a x.log",
    f"{END} |& tee x.log",
    f"nohup {END} > train.log 2>&1 &\nwait",
    f"export CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2\nexport FOO\n{END}",
    f"CUDA_VISIBLE_DEVICES=0\nexport CUDA_VISIBLE_DEVICES\n{END}",
    f"export NPROC_PER_NODE=1\nNPROC_PER_NODE=2\n{END}",
    f"NPROC_PER_NODE=4\n{END}",
    f"set -a\nNPROC_PER_NODE=4\nset +a\nFOO=1\n{END}",
    f"export NPROC_PER_NODE=4\nunset NPROC_PER_NODE\n{END}",
    f"declare -x FOO=1\n{END}",
    'train() {\n  swift sft --model a/b --dataset "$1" --lora_rank ${2:-8}\n}\ntrain c.jsonl 16',
    "function train {\n  local rank=$1\n  swift sft --model a/b --lora_rank $rank\n}\ntrain 16",
    'run() { swift sft --model a/b "$@"; }\nrun --dataset c.jsonl --lora_rank 4',
    'log() { echo "$*"; }\nmain() {\n  log start\n  M=${1:-a/b}\n  swift sft \\\n    --model "$M"\n}\nmain "$@"',
    f'{END} "$@"',
    f"for seed in 42; do\n  {END} --seed $seed\ndone",
    f": \"${{RANK:=16}}\"\n{END} --lora_rank $RANK --lora_alpha ${{ALPHA:=32}}",
    "M=a/b/\nswift sft --model ${M%/} --output_dir out/${M##*/}x",
    "M=Qwen/Qwen2.jsonl\nswift sft --model ${M%.*} --output_dir out/${M##*/} --x ${M#*/} --y ${M%%/*}",
    "M=Qwen/Qwen2\nswift sft --model $M --output_dir out/${M//\\//_} --x ${M/Qwen/q} --y ${M^^} --z ${M:0:4}",
    "swift sft --model ${M:-${N:-a/b}} --x ${FOO:+y}z",
    f"GPUS=(0 1)\nNPROC_PER_NODE=${{#GPUS[@]}} {END} --x ${{GPUS[1]}}",
    f"G=0,1\nN=$(echo $G | tr ',' '\\n' | wc -l)\nNPROC_PER_NODE=$N CUDA_VISIBLE_DEVICES=$G {END}",
    "M=Qwen/Qwen2\nswift sft --model $M --output_dir out/$(basename $M)-$(basename d/c.jsonl .jsonl)/$(dirname x/y)",
    "swift sft --dataset data/{a,b}.jsonl --x s{1..3}",
    "touch g1.jsonl g2.jsonl\nswift sft --dataset g*.jsonl --x 'g*.jsonl' --y h*.jsonl",
    "swift sft --model a/b --system $'You are\\nx'",
    "$(which swift) sft --model a/b",
    "S=$(command -v swift)\n$S sft --model a/b",
    "CMD=(swift sft --model a/b)\nCMD+=(--dataset c.jsonl)\n\"${CMD[@]}\"",
    f'eval "{END}"',
    f"bash -c '{END}'",
    "export FOO=x\nbash -c 'NPROC_PER_NODE=2 swift sft --model $FOO'",
    "mkdir -p sub; cd sub\nswift sft --output_dir $(pwd)/out",
    "GAS=$((16 / 2))\nswift sft --x $GAS",
    f"[ -d /nowhere ] || FOO=1 {END}",
    f"if true; then\n  export FOO=1\nfi\n{END}",
    f"python -c \"\nimport swift\n\" || true\n{END}",
    "ARGS=(\n  --model a/b  # the model\n  # --seed 3\n  --system 'a b'\n)\nswift sft \"${ARGS[@]}\"",
    "read -r -d '' ARGS <<'EOF' || true\n--model a/b\n--lora_rank 8\nEOF\nswift sft $ARGS",
    "R=8\nread -r -d '' ARGS <<EOF || true\n--model a/b\n--lora_rank $R\nEOF\nswift sft $ARGS",
    "D=(a.jsonl b.jsonl)\nswift sft --dataset \"${D[@]}\" --y ${D[*]} --z \"${D[-1]}\"",
    "printf -v NAME 'run-%03d' 7\nswift sft --model a/b --output_dir out/$NAME",
    "M=a/b\nwhile [[ $# -gt 0 ]]; do\n  case $1 in\n    --model|-m) M=\"$2\"; shift 2;;\n    *) shift;;\n  esac\ndone\nswift sft --model $M",
    "while getopts 'm:' opt; do\n  case $opt in\n    m) M=$OPTARG;;\n  esac\ndone\nswift sft --model ${M:-a/b}",
    f"IFS=',' read -ra G <<< \"0,1\"\nNPROC_PER_NODE=${{#G[@]}} {END}",
    f"IFS=, read -r FOO R <<< 1,2\n{END} --x $FOO --y $R",
    "let N=2*4 K=N-1\n((M=N+1)); ((M++)); ((K *= 2))\nswift sft --x $N --y $M --z $K",
    f"env -u FOO NPROC_PER_NODE=2 {END}",
    f"echo 'export FOO=5 R=6' > env.sh\nsource env.sh\n{END} --lora_rank $R",
    "set -- --lora_rank 8 --seed 1 x\nshift 2\nswift sft --model a/b \"$1\" 3",
    "M=a/b\nswift sft --model $M --x ${M^} --y ${M,}",
    f"CUDA_VISIBLE_DEVICES=$(seq -s, 0 3) NPROC_PER_NODE=4 {END}",
    f"CUDA_VISIBLE_DEVICES=$(seq 0 3 | paste -sd,) NPROC_PER_NODE=$(echo 0,1 | awk -F, '{{print NF}}') {END}",
    "M=a/b\nswift sft --model $M --x $(echo $M | cut -d/ -f2)-$(echo $M | sed 's#/#_#g' | tr a-z A-Z)",
    "S=$(printf '%s ' a.jsonl b.jsonl)\nswift sft --dataset $S --x $(echo c d | wc -w)",
    "swift sft --dataset $(echo a.jsonl,b.jsonl | tr ',' ' ') --x y",
    "swift sft --model=a/b --x=1 --y=",
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_means_what_bash_runs(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, place = tmp_path / "programs", tmp_path / "place"
    programs.mkdir()
    place.mkdir()
    (programs / "swift").write_text(RECORD)
    (programs / "swift").chmod(0o755)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(place)
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "RECORDED": str(tmp_path / "run")}
    subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=True)
    (recorded,) = tmp_path.glob("run.*")
    words, variables = recorded.read_text().split("\1")
    found = from_command(script)
    assert (found.command, found.values) == ("sft", _arguments(words.split("\0")[1:-1])[0])
    assert {name: found.env[name] for name in VARIABLES if name in found.env} == {
        name: value for name, _, value in (one.partition("=") for one in variables.split("\0")[:-1])
    } | ({"NPROC_PER_NODE": "1"} if found.notices else {})


@pytest.mark.parametrize(
    ("script", "noted"),
    [
        (
            f"R=8\nif [ -d x ]; then\n  R=64\nfi\n{END} --lora_rank $R",
            "the condition under which R is set; its last value, 64, is used",
        ),
        (
            f"[ -d x ] && R=64\nR=${{R:-8}}\n{END} --lora_rank $R",
            "the condition under which R is set; its last value, 64, is used",
        ),
        (
            f"case $1 in\n  a) R=1 ;;\n  b) R=2 ;;\nesac\n{END} --lora_rank $R",
            "the condition under which R is set; its last value, 2, is used",
        ),
        (
            f"for lr in 1e-4 1e-5; do {END} --learning_rate $lr; done",
            "the loop over lr: 1e-4, 1e-5; give one value for the setting, or train with each: --sweep",
        ),
        (
            f"for ((i=0; i<3; i++)); do {END} --seed $i; done",
            "the loop over i; give one value for the setting, or train with each: --sweep",
        ),
        (f"NPROC_PER_NODE=$(nvidia-smi -L | wc -l) {END}", "NPROC_PER_NODE=$(nvidia-smi -L | wc -l), which is not known here"),
        (f"mpirun -np 2 {END}", "mpirun -np 2; start processes with --nproc-per-node and --nnodes"),
        (
            f"while getopts m: o; do\n  case $o in\n    m) M=$OPTARG;;\n  esac\ndone\n{END} --x ${{M:-y}}",
            "the condition under which M is set; it counts as not set",
        ),
        (f"cd /tmp\n{END}", "the script changes to /tmp; relative paths are read from the current directory"),
    ],
)  # fmt: skip
def test_what_depends_on_what_is_not_evaluated_is_noted(script: str, noted: str) -> None:
    assert noted in from_command(script).left_out


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (f"docker run -e CUDA_VISIBLE_DEVICES=1 --env=FOO=2 image {END}", {"CUDA_VISIBLE_DEVICES": "1", "FOO": "2"}),
        (f'docker run --gpus all image bash -c "FOO=1 {END}"', {"FOO": "1"}),
        (f'ssh host "cd x && {END}"', {}),
        (f'tmux new-session -d -s t "{END}"', {}),
        (f'sbatch --gres=gpu:1 --wrap="{END}"', {}),
        (f"$ export FOO=1\n$ {END[:9]} \\\n>   {END[10:]}", {"FOO": "1"}),
        (f"torchrun --standalone --nproc_per_node=gpu -m swift.cli.sft{END[9:]}", {}),
        ("torchrun --nproc_per_node=2 -m swift.cli.main sft --model a/b --dataset c.jsonl", {"NPROC_PER_NODE": "2"}),
        ("accelerate launch --num_processes=2 -m swift.cli.sft --model a/b --dataset c.jsonl", {"NPROC_PER_NODE": "2"}),
    ],
)  # fmt: skip
def test_programs_around_the_command(text: str, env: dict[str, str]) -> None:
    found = from_command(text)
    assert found.values == {"model": "a/b", "dataset": "c.jsonl"}
    assert found.env == env


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"CUDA_VISIBLE_DEVICES=0, 1 {END}", '"CUDA_VISIBLE_DEVICES=0, 1" has a space in the value. Write CUDA_VISIBLE_DEVICES=0,1.'),
        (f"CUDA_VISIBLE_DEVICES= 0,1 {END}", '"CUDA_VISIBLE_DEVICES= 0,1" has a space in the value. Write CUDA_VISIBLE_DEVICES=0,1.'),
        ("MODEL = a/b\nswift sft --model $MODEL", '"MODEL = a/b" has spaces around "=". Write MODEL=a/b.'),
        ("swift sft -model a/b", '"-model" starts with one dash. Write --model.'),
        (f"{END} --dataset=d.jsonl e.jsonl", '"e.jsonl" belongs to no setting. Remove it, or write --NAME before it.'),
        (f"set FOO=0\n{END}", '"set FOO=" is how cmd.exe sets a variable. Write export FOO=...'),
        ("swift sft --model %MODEL%", '"%MODEL%" is how cmd.exe reads a variable. Write ${MODEL}.'),
    ],
)  # fmt: skip
def test_what_the_shell_or_ms_swift_refuses(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_command(text)
    assert (
        message
        in [line.partition(": ")[2] or line for line in str(caught.value).splitlines()]
        + str(caught.value).splitlines()
    )


def test_several_commands_of_a_loop_of_functions_end() -> None:
    assert len(all_commands("f() { swift sft; f; }\nf")) > 1
