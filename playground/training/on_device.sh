#!/usr/bin/env bash
# Trains one bundled policy in one go on a machine with many cores and an accelerator
# that is lent for minutes: demonstrations on all cores, training, export, one archive to take home.
#
#   playground/training/on_device.sh POLICY STEPS OUT
#
# POLICY: pi0, pi05 or pi0_fast. STEPS: length of the schedule. OUT: where the
# exported folder and POLICY.tar.gz go; the card names it.
# Settings from the environment:
#   SHARDS      of demonstrations (120)
#   IMAGES      looks in a step (64); PROMPTS requests of each (4)
#   TRAIN_S     seconds after which training stops wherever it is (480); what is there is exported
#   START_FROM  an exported policy whose sight and language to begin with
#   PYTHON      the interpreter (python3)
#   WHEELS      a folder of wheels to install beside what the interpreter has, without a network
set -euo pipefail
cd "$(dirname "$0")/../.."
policy=${1:?which policy} steps=${2:?how many steps} out=$(mkdir -p "${3:?where to}" && cd "$3" && pwd)
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
# The renderer casts rays: nothing is to be asked of a graphics library.
export MUJOCO_GL=off PYTHONUNBUFFERED=1

SECONDS=0
OMP_NUM_THREADS=1 "$python" -m playground.training.demonstrations \
  --shards "${SHARDS:-120}"
echo "demonstrations: $SECONDS s"

SECONDS=0
timeout --signal=TERM "${TRAIN_S:-480}" "$python" -m playground.training.train "$policy" \
  --steps "$steps" --images "${IMAGES:-64}" --prompts "${PROMPTS:-4}" \
  ${START_FROM:+--start-from "$START_FROM"} || [ $? = 124 ]
echo "training: $SECONDS s"

"$python" -m playground.training.export "$policy" --folder "$out/$policy"
tar -C "$out" -czf "$out/$policy.tar.gz" "$policy"
ls -l "$out/$policy.tar.gz"
