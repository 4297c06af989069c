#!/usr/bin/env bash
# One node of a run, from a bare machine to its last word. SkyPilot starts this on every node.
#
# Looks at the hardware, installs the Python environment, then starts the supervisor (on the head
# node) or a follower (on the others), again where that was killed. Whatever happens, the head
# node's machine is told to end. Bash alone until there is a Python that is known to be good.
#
# It reads, and passes on:
#   RUN_ID, RUN_STORE, RUN_RECORD, RUN_OFFERS, RUN_BUDGET_USD, RUN_MAX_HOURS, RUN_TEARDOWN_S
#   NODE_ROOT          the working folder
#   NODE_REQUIREMENTS  what to install, as pip's requirements, one a line
#   NODE_GPUS          how many there should be; 0: do not look for any
#   NODE_GO_DOWN_IN    program that ends this machine in so many MINUTES; empty: none can
#   NODE_RANK, NODE_COUNT, NODE_IPS, NODE_PLACE   as SkyPilot tells them
# and whatever the clients of the store and the Hub need (AWS_ACCESS_KEY_ID, HF_TOKEN, …).
set -euo pipefail

readonly MIN_DRIVER=525.60.13 # of CUDA 12, by NVIDIA's table of CUDA's compatibility
readonly MAX_RESTARTS=3
readonly IS_ALIVE=75 # the supervisor's word for: another one keeps this run, here
readonly INSTALL_TIMEOUT_S=1800
readonly RECORD_TIMEOUT_S=180

rank=${NODE_RANK:-0}
gpus=${NODE_GPUS:-0}
package_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=$NODE_ROOT/runs/$RUN_ID
setup_log=$run/logs/setup.log
[[ $rank == 0 ]] || setup_log=$run/logs/setup-$rank.log
requirements=${NODE_REQUIREMENTS:-}
venv=$NODE_ROOT/venv-$(sha256sum <<<"$requirements" | cut -c1-16)
export PYTHONPATH=$package_root${PYTHONPATH:+:$PYTHONPATH}

phase=booting # of the set-up; empty once it is done
message=      # why the run cannot go on, where that is known
hint=
reason=setup
child= # the supervisor or the follower
is_told_to_end=

say() {
  printf '%s: %s\n' "$RUN_ID" "$*"
}

# A phase of the set-up begins: at this moment, or so many seconds ago.
enter() { # PHASE [SECONDS]
  phase=$1
  say "$phase"
  # Not by the clock of the day, which is often set right while a machine boots.
  awk -v ago="${2:-0}" -v phase="$phase" \
    '{ printf "%.2f %s\n", $1 - ago, phase }' /proc/uptime >>"$run/.setup"
}

blame() { # MESSAGE HINT
  message=$1 hint=$2
  say "error: $message"
  say "  hint: $hint"
}

give_up() { # MESSAGE HINT
  blame "$1" "$2"
  exit 1
}

go_down() {
  [[ -n ${NODE_GO_DOWN_IN:-} ]] || return 0
  local try
  for try in 1 2 3; do
    "$NODE_GO_DOWN_IN" 0 && say "the machine goes down" && return 0
    say "the machine did not take the order to end (try $try)"
    sleep 2
  done
}

# --- checking_hardware ------------------------------------------------------------------------

check_disk() {
  local free_gb needed_gb=2
  ((gpus == 0)) || needed_gb=15 # the CUDA libraries that torch brings, unpacked, and uv's cache
  [[ ! -e $venv/.complete ]] || needed_gb=0
  free_gb=$(df --output=avail -B 1000000000 "$NODE_ROOT" | tail -n 1 | tr -d ' ')
  say "disk: $free_gb GB free"
  ((free_gb >= needed_gb)) ||
    give_up "the disk has $free_gb GB free, the training stack needs $needed_gb GB" \
      "ask for a machine with a larger disk"
}

check_clock() {
  (($(date +%Y) >= 2025)) ||
    give_up "the clock says $(date -u +%Y-%m-%d): no certificate would be valid" \
      "a machine whose clock is wrong is broken: launch again to get another"
}

check_gpus() {
  local needed="CUDA 12 needs NVIDIA's driver $MIN_DRIVER or newer"
  command -v nvidia-smi >/dev/null ||
    give_up "no NVIDIA driver: nvidia-smi is not there; $needed" \
      "choose an image or a cloud whose machines come with the driver"
  local fields=driver_version,name,memory.total,ecc.errors.uncorrected.volatile.total found
  found=$(timeout 60 nvidia-smi --query-gpu="$fields" --format=csv,noheader,nounits 2>&1) ||
    give_up "NVIDIA's driver does not answer: $(head -c 300 <<<"$found"); $needed" \
      "the driver is broken or hangs: launch again to get another machine"
  say "GPUs (driver, name, memory in MiB, uncorrected ECC errors):"
  printf '%s\n' "$found"

  local driver count kinds
  driver=$(head -n 1 <<<"$found" | cut -d, -f1)
  [[ $(printf '%s\n' "$MIN_DRIVER" "$driver" | sort -V | head -n 1) == "$MIN_DRIVER" ]] ||
    give_up "NVIDIA's driver is $driver; $needed" \
      "choose an image with a newer driver, or another cloud or region"
  count=$(wc -l <<<"$found")
  ((count == gpus)) ||
    give_up "the driver shows $count GPUs, the machine should have $gpus" \
      "a GPU that is missing is broken: launch again to get another machine"
  kinds=$(cut -d, -f2,3 <<<"$found" | sort -u)
  (($(wc -l <<<"$kinds") == 1)) ||
    give_up "the GPUs are not alike: ${kinds//$'\n'/; }" "launch again to get another machine"
  # Cards without ECC say so instead of a number.
  awk -F', *' '$4 ~ /^[0-9]+$/ && $4 > 0 { exit 1 }' <<<"$found" ||
    give_up "a GPU has uncorrected memory errors: $(cut -d, -f4 <<<"$found" | tr -d '\n')" \
      "its results could not be trusted: launch again to get another machine"
}

# --- installing -------------------------------------------------------------------------------

find_uv() {
  local candidate
  for candidate in uv "$HOME/.local/bin/uv"; do
    # One that is too old to choose torch's build is as good as none.
    if "$candidate" pip install --help 2>/dev/null | grep -q -- --torch-backend; then
      uv=$candidate
      return
    fi
  done
  say "installing uv"
  curl --proto '=https' --retry 3 --max-time 120 -LsSf https://astral.sh/uv/install.sh |
    env UV_NO_MODIFY_PATH=1 UV_INSTALL_DIR="$HOME/.local/bin" sh ||
    give_up "uv could not be installed: its installer could not be fetched or run" \
      "the machine needs the internet, or uv in ~/.local/bin"
  uv=$HOME/.local/bin/uv
}

install_into() { # FOLDER REQUIREMENTS
  "$uv" venv --quiet --python "${UV_PYTHON:->=3.11,<3.15}" "$1" &&
    printf '%s\n' "$2" >"$1/requirements.txt" &&
    { [[ -z $2 ]] || timeout "$INSTALL_TIMEOUT_S" "$uv" pip install --no-progress \
      --python "$1/bin/python" --torch-backend="${UV_TORCH_BACKEND:-auto}" \
      --requirements "$1/requirements.txt"; }
}

# A virtual environment that is complete when its marker is there, and then is not made again.
make_environment() { # FOLDER REQUIREMENTS
  if [[ -e $1/.complete ]]; then
    say "already installed: $1"
  else
    rm -rf "$1"
    if ! install_into "$1" "$2" 2>&1 | tee "$1.log"; then
      give_up "the environment could not be installed: $(tail -n 5 "$1.log" | head -c 600)" \
        "\`gptctl logs $RUN_ID --stage setup\` shows all that uv said"
    fi
    touch "$1/.complete"
  fi
  python=$1/bin/python
  printf '%s\n' "$python" >"$run/.python" # for what runs as the machine ends
}

# --- the end ----------------------------------------------------------------------------------

# Arguments of both programs.
node_arguments() {
  arguments=(
    "$RUN_ID" --store "$RUN_STORE" --root "$NODE_ROOT"
    --node-rank "$rank" --node-count "${NODE_COUNT:-1}" --node-ips "${NODE_IPS:-}"
  )
}

supervisor_arguments() {
  node_arguments
  arguments+=(
    --record-env --offers "${RUN_OFFERS:-[]}" --place "${NODE_PLACE:-}"
    --setup-file "$run/.setup" --teardown-s "${RUN_TEARDOWN_S:-0}"
    --go-down-in "${NODE_GO_DOWN_IN:-}"
  )
  [[ -z ${RUN_BUDGET_USD:-} ]] || arguments+=(--budget-usd "$RUN_BUDGET_USD")
  [[ -z ${RUN_MAX_HOURS:-} ]] || arguments+=(--max-hours "$RUN_MAX_HOURS")
}

# Write the failure into the run's record, by an environment as small as can talk to the store.
record_failure() {
  local small
  if [[ -z ${python:-} ]]; then
    small=$(grep -iE '^(msgspec|boto3|psutil)([^a-z0-9_-]|$)' <<<"$requirements" || true)
    [[ -n ${uv:-} ]] || find_uv
    make_environment "$NODE_ROOT/venv-small" "$small"
  fi
  supervisor_arguments
  timeout "$RECORD_TIMEOUT_S" "$python" -m training.supervise "${arguments[@]}" \
    --setup-error="$message" --setup-hint="$hint" --setup-reason="$reason"
}

finish() {
  local code=$?
  trap - EXIT
  if [[ -n $phase$message ]] && ((code)); then
    if [[ -n $is_told_to_end ]]; then
      blame "the machine was told to end while $phase" "\`gptctl launch --resume $RUN_ID\`"
    elif [[ -z $message ]]; then
      blame "the set-up broke off while $phase (exit code $code)" \
        "\`gptctl logs $RUN_ID --stage setup\` shows its last words"
    fi
    # In a shell of its own, as that may itself give up. It exits 1: the run has failed.
    (record_failure) || true
    go_down
  elif [[ $rank == 0 && $code != "$IS_ALIVE" ]]; then
    go_down
  fi
  exit "$code"
}

# SkyPilot ends all nodes where one has failed, and 30 s later kills what is left.
end_early() {
  is_told_to_end=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
  [[ $rank != 0 ]] || go_down
}

# --- the lives --------------------------------------------------------------------------------

# Run a module to its end, whatever signals come meanwhile; its exit code is in `code`.
run_program() { # MODULE LOG
  exec 4> >(
    trap '' TERM INT HUP
    exec tee -a "$2" >&3
  )
  "$python" -m "$1" "${arguments[@]}" >&4 2>&1 &
  child=$!
  exec 4>&-
  local interruptions
  while :; do
    interruptions=$is_told_to_end code=0
    wait "$child" || code=$?
    [[ $interruptions != "$is_told_to_end" ]] || break # else it was the signal that ended `wait`
  done
  child=
}

live() {
  local module=training.supervise log=$run/logs/supervise.log restarts
  if [[ $rank == 0 ]]; then
    supervisor_arguments
  else
    module=training.follower log=$run/logs/follower-$rank.log
    node_arguments
  fi
  for ((restarts = 0; ; restarts++)); do
    run_program "$module" "$log"
    ((code > 128)) && [[ -z $is_told_to_end ]] || exit "$code"
    say "$module was killed by signal $((code - 128))"
    if ((restarts == MAX_RESTARTS)); then
      reason=killed
      blame "$module was killed $((restarts + 1)) times, last by signal $((code - 128))" \
        "signal 9 is most often the machine's memory used up; \`gptctl launch --resume $RUN_ID\`"
      exit "$code"
    fi
    sleep 1
  done
}

trap finish EXIT
trap end_early TERM INT HUP
mkdir -p "$run/logs"
exec 3>&1 # the job's own output
exec > >(
  trap '' TERM INT HUP
  exec tee -a "$setup_log"
) 2>&1
cd "$NODE_ROOT" # where a text that came with the run lies

: >"$run/.setup"
enter booting "$(ps -o etimes= -p 1 | tr -d ' ' || echo 0)"
enter checking_hardware
check_clock
check_disk
((gpus == 0)) || check_gpus
enter installing
find_uv
make_environment "$venv" "$requirements"
enter starting
phase=
live
