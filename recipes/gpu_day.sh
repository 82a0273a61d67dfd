#!/usr/bin/env bash
# All that wants a GPU, the most important first: tests, benchmarks, converged trainings. It may be stopped at any point.
#
#     recipes/gpu_day.sh DIR [OUT] [SECONDS]    # DIR: CIFAR-10, see cifar.py; OUT: runs/gpu_day; SECONDS: 660 in all
#
# Each part writes its files as soon as it has them: OUT/*.log, OUT/results/*.json. Trainings that are finished are not
# done again. To try it on a CPU: DEVICE=cpu SMALL=--fast-dev-run recipes/gpu_day.sh DIR runs/trial 300
set -u
data=$1 out=${2:-runs/gpu_day} seconds=${3:-660}
device=${DEVICE:-cuda} small=${SMALL:-}
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out/results"
export PYTHONPATH=$PWD PYTHONWARNINGS=ignore
deadline=$((SECONDS + seconds))

# part NAME MOST COMMAND...: what a part prints goes to NAME.log; it ends after MOST seconds, and with the whole
part() {
    local name=$1 most=$2 left=$((deadline - SECONDS)) begun=$SECONDS
    shift 2
    [ "$left" -gt 5 ] || { echo "$name: no time left"; return; }
    timeout --kill-after=5 "$((most < left ? most : left))" "$@" > "$out/$name.log" 2>&1
    echo "$name: status $?, $((SECONDS - begun)) s" | tee -a "$out/summary.txt"
}

bench="${PYTHON:-python} recipes/benchmark.py --device $device $small"
part environment 20 "${PYTHON:-python}" -m torch.utils.collect_env
# shellcheck disable=SC2086
{
    part tests 150 "${PYTHON:-python}" -m pytest -q -p no:cacheprovider -m gpu --override-ini=filterwarnings= -rfs
    part training 120 $bench --training --rounds 3 --out "$out/results/gpu_training.json"
    part maps_fp32 60 $bench --network resnet50 --batch-size 64 --rounds 3 --out "$out/results/gpu_maps_fp32.json"
    part maps_bf16 60 $bench --network resnet50 --batch-size 64 --rounds 3 --bfloat16 --out "$out/results/gpu_maps_bf16.json"
    part validation 60 $bench --validation --network resnet50 --bfloat16 --batch-size 64 --rounds 3 --out "$out/results/gpu_validation.json"
    part cifar "$seconds" "${PYTHON:-python}" recipes/cifar_interp.py --data "$data" --device "$device" --seeds 20 $small \
        --results "$out/results"
}
