# The functions of a job with one container per node. The rendered script sets variables before them, and calls `main`
# after them. On each node srun runs the same script again, with the action as its argument (`main`).
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317  # rendered variables; programs of other shells

# --- on every node, before a container starts

# A user in docker's group needs no sudo; nodes may differ.
sudo=()
engine() { "${sudo[@]}" docker "$@"; }
find_engine() {
  docker ps >/dev/null 2>&1 && return
  sudo=(sudo -n)
  engine ps >/dev/null 2>&1 || fail 8 "the node $(uname -n): docker answers neither to $(id -un) nor to sudo"
}

# A network file system may still show files of an earlier checkout.
refresh_workspace() {
  sync
  ls -la -- "$workspace/${program%/*}" >/dev/null 2>&1
  cat -- "$workspace/$program" >/dev/null 2>&1 ||
    fail 8 "the node $(uname -n): it does not see $workspace/$program"
  echo 3 | sudo -n tee /proc/sys/vm/drop_caches >/dev/null 2>&1 || true
}

check_network() {
  [ -f "$workspace/$rdma_check" ] || { say "the node $(uname -n): no $rdma_check, so its network is not looked at"; return; }
  bash "$workspace/$rdma_check" >&2 || fail 8 "the node $(uname -n): its RDMA is set up wrongly ($rdma_check, above)"
}

# The source address of the default route is the one by which other nodes reach this one.
address() {
  local found
  found=$(ip route get 1.1.1.1 2>/dev/null | grep -oE 'src [0-9.]+' | head -n 1)
  printf '%s\n' "${found#src }"
}

look() {
  local found image=- reference
  trap 'code=$?; [ "$code" -eq 0 ] || printf "red %s\n" "$code" >&3' EXIT
  refresh_workspace
  look_at_clock "$own"
  ask_login "$own"
  if has rdma; then check_network; fi
  if [ "$engine" = docker ]; then
    find_engine
    for reference in "${pulls[@]}"; do
      run_step engine pull --quiet "$reference" || say "image $reference: cannot be pulled on $(uname -n)"
    done
    # A requeued job may have left containers under this id; containers of others are not touched.
    end_containers
    pull_image engine "$image_reference" "$repository"
  fi
  check_node_closely
  hear_login "$own"
  found=$(address)
  [ -n "$found" ] || fail 8 "the node $(uname -n): no route tells its address"
  printf 'node %s %s %s %s\n' "$SLURM_PROCID" "${SLURMD_NODENAME:-$(uname -n)}" "$found" "$image" >&3
}

has() {
  local check
  for check in "${checks[@]}"; do [ "$check" != "$1" ] || return 0; done
  return 1
}

# --- a container of docker, on its node

end_containers() {
  local id
  engine ps --all --quiet --filter="label=$label" 2>/dev/null | while read -r id; do
    engine kill "$id" >/dev/null 2>&1
    engine rm --force "$id" >/dev/null 2>&1
  done
  for id in "${beside[@]}"; do
    [ -z "$(engine ps --all --quiet --filter="name=^/?$id\$" 2>/dev/null)" ] || engine rm --force "$id" >/dev/null 2>&1
  done
}

# Mooncake needs user-space libraries that match the kernel's drivers: the host's, for its make of network adapters.
host_library_mounts() {
  local device name bnxt=0 mlx5=0 ionic=0 kind=${MORI_NIC_TYPE:-} file real lib=/usr/lib/x86_64-linux-gnu
  for device in /sys/class/infiniband/*; do
    name="${device##*/} $(readlink -f "$device/device/driver" 2>/dev/null)"
    case $name in
      bnxt_re* | */bnxt*) bnxt=$((bnxt + 1)) ;;
      mlx5*) mlx5=$((mlx5 + 1)) ;;
      ionic* | */ionic*) ionic=$((ionic + 1)) ;;
    esac
  done
  if [ -z "$kind" ]; then
    kind=mlx5
    if [ "$bnxt" -gt 0 ] && [ "$bnxt" -ge "$mlx5" ] && [ "$bnxt" -ge "$ionic" ]; then kind=bnxt
    elif [ "$ionic" -gt 0 ] && [ "$ionic" -ge "$mlx5" ]; then kind=ionic; fi
  fi
  say "the node $(uname -n): its adapters are $kind"
  case $kind in ionic | bnxt) ;; *) return ;; esac
  for file in /usr/lib64/libibverbs.so.1 /lib/x86_64-linux-gnu/libibverbs.so.1 "$lib/libibverbs.so.1"; do
    real=$(readlink -f "$file")
    case $real in *libibverbs.so.1.14.57.0) continue ;; esac # not compatible with the images
    [ ! -f "$real" ] || { volumes+=("--volume=$real:/lib/x86_64-linux-gnu/libibverbs.so.1"); break; }
  done
  for file in /usr/local/lib/lib"${kind/bnxt/bnxt_re}"*.so "$lib"/libionic*.so; do
    case $kind:${file##*/} in *:*'*'* | bnxt:libionic*) continue ;; esac
    real=$(readlink -f "$file")
    case $file in
      *bnxt_re-rdmav*) volumes+=("--volume=$file:$lib/libibverbs/${file##*/}") ;;
      *)
        [ "$kind" = bnxt ] || volumes+=("--volume=$real:$real")
        volumes+=("--volume=$file:$lib/${file##*/}")
        ;;
    esac
  done
  for file in "$lib"/libibverbs/libionic-rdmav*.so; do
    [ "$kind" = bnxt ] || [ ! -f "$file" ] || volumes+=("--volume=$file:$file")
  done
  [ ! -d /etc/libibverbs.d ] || volumes+=(--volume=/etc/libibverbs.d:/etc/libibverbs.d:ro)
}

# Files that containers wrote belong to root. A container changes their owner, or the next checkout would fail.
give_back() {
  local owner
  owner=$(id -u):$(id -g)
  [ "${owner%%:*}" -ne 0 ] || return 0
  timeout 60 "${sudo[@]}" docker run --rm --label="$label" --entrypoint= --volume="$workspace:/w" \
    ${node_logs:+"--volume=$node_logs:/n"} "$image" sh -c 'find /w /n -user 0 -exec chown -h "$0" {} + 2>/dev/null' \
    "$owner" >/dev/null 2>&1
}

copy_logs_to_workspace() {
  local into=$logs/logs/${node_logs##*/}
  if [ -z "$node_logs" ] || [ ! -d "$node_logs" ]; then return; fi
  mkdir -p -- "$into"
  cp -r --remove-destination -- "$node_logs/." "$into/" ||
    say "the node $(uname -n): its logs in $node_logs could not all be brought to $logs"
  rm -rf -- "$node_logs" || say "the node $(uname -n): $node_logs could not be removed"
} 2>/dev/null

end_node() {
  local code=${ended:-$?}
  trap - EXIT
  trap '' TERM INT HUP
  end_containers
  # A container that was being created when the signal came appears a moment later.
  while [ -n "$child" ] && kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    end_containers
  done
  give_back
  copy_logs_to_workspace
  exit "$code"
}

# The variables come by standard input, because no value may be in an argv, and sudo keeps no variables.
run_node() {
  local volumes=() at found
  image=$2
  find_engine
  trap end_node EXIT
  on_signals
  for at in "${!mounts[@]}"; do volumes+=("--volume=${mounts[at]}"); done
  for at in "${!volumes[@]}"; do
    case ${volumes[at]} in *:/usr/bin/docker) volumes[at]="--volume=$(command -v docker):/usr/bin/docker" ;; esac
  done
  found=$(command -v nicctl) && volumes+=("--volume=$found:/usr/sbin/nicctl")
  [ -z "$host_libraries" ] || host_library_mounts
  [ -z "$node_logs" ] || mkdir -p -- "$node_logs" || fail 8 "the node $(uname -n): $node_logs cannot be made"
  carry "${names[@]}"
  printf '%s' "$LAUNCHER_ENVIRONMENT" | engine run --rm --interactive --name="launcher-$key-$SLURM_JOB_ID-$1" \
    --label="$label" "${flags[@]}" "${volumes[@]}" ${workdir:+"--workdir=$workdir"} "$image" \
    bash -c "$carried_reader" "$in_container" &
  child=$!
  wait "$child"
}

sweep_node() {
  image=$1
  find_engine
  end_containers
  give_back
  copy_logs_to_workspace
}

# --- the job

on_signals() {
  ended=
  trap 'on_signal 143' TERM
  trap 'on_signal 130' INT
  trap 'on_signal 129' HUP
}
on_signal() {
  trap '' TERM INT HUP
  ended=$1 grace=$grace_after_signal
  exit "$1"
}

# Called in a process of its own, which becomes srun, so that signals reach srun.
on_all_nodes() {
  exec srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --export=ALL bash "$script" "$@" </dev/null
}

check_nodes() {
  local word rank name address other code red=0
  run_step on_all_nodes look >"$own/looked"
  code=$?
  while read -r word rank name address other; do
    case $word in
      red) [ "$rank" -le "$red" ] || red=$rank ;;
      node) names_of_nodes[rank]=$name addresses[rank]=$address images[rank]=$other ;;
    esac
  done <"$own/looked"
  [ "$red" -eq 0 ] || exit "$red"
  if [ "$code" -ne 0 ] || [ "${#names_of_nodes[@]}" -ne "$nodes" ]; then
    fail "$((code > 0 ? code : 8))" "the node look ended with $code, and ${#names_of_nodes[@]} of $nodes nodes answered"
  fi
  for rank in "${!images[@]}"; do
    [ "${images[rank]}" = "${images[0]}" ] ||
      fail 3 "image $image_reference: ${names_of_nodes[0]} has ${images[0]}, ${names_of_nodes[rank]} ${images[rank]}"
  done
  [ "${images[0]}" = - ] || fact image "${images[0]}"
  fact nodes "${names_of_nodes[*]}"
  say "nodes: ${names_of_nodes[*]}"
}

join_by_commas() {
  local IFS=,
  printf '%s' "$*"
}

# Run a command until its end, and forward TERM to it.
run_and_forward_term() {
  "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM
  trap '' INT HUP
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"
}

# One step per node, so that each container has its own exit code and can be ended alone.
start() {
  local rank
  set -m # each step in its own process group
  for ((rank = 0; rank < nodes; rank++)); do
    (
      trap - EXIT
      at_run_time "$rank"
      run_and_forward_term step "$rank" </dev/null
      code=$?
      printf '%s\n' "$code" >"$own/.exit.$rank" && mv -f -- "$own/.exit.$rank" "$own/exit.$rank"
      exit "$code"
    ) &
    steps[rank]=$!
  done
  set +m
}

# Whether a step has ended. Then `codes` has its exit code, from its file or, if that could not be written, from `wait`.
has_ended() {
  [ -z "${codes[$1]-}" ] || return 0
  ! kill -0 "${steps[$1]}" 2>/dev/null || [ -e "$own/exit.$1" ] || return 1
  codes[$1]=$(cat -- "$own/exit.$1" 2>/dev/null)
  [ -z "${codes[$1]}" ] || return 0
  kill -KILL -- "-${steps[$1]}" 2>/dev/null # the step was killed, and its srun may still run
  wait "${steps[$1]}"
  codes[$1]=$?
}

# End the running steps. A step that gets TERM may have no time to end its container, which docker keeps running: so the
# container is ended first, and its step ends with it. When the job itself is ended, Slurm signals the nodes.
end_steps() {
  local rank look left
  for rank in "${!steps[@]}"; do
    ! has_ended "$rank" || continue
    ended_by_us[rank]=yes
    if [ "$engine" = docker ] && [ -z "$ended" ]; then
      timeout 60 srun --overlap --nodes=1 --ntasks=1 --export=ALL --nodelist="${names_of_nodes[rank]}" \
        bash "$script" stop-node </dev/null &
    else
      kill -TERM "${steps[rank]}" 2>/dev/null
    fi
  done
  for ((look = 0; look < grace * 10; look++)); do
    left=
    for rank in "${!steps[@]}"; do
      has_ended "$rank" || left=yes
    done
    [ -n "$left" ] || return 0
    sleep 0.1
  done
  for rank in "${!steps[@]}"; do
    has_ended "$rank" || kill -KILL -- "-${steps[rank]}" 2>/dev/null
  done
}

# The other containers serve the coordinator's, and may not notice that the benchmark is over.
wait_for_all() {
  local rank code running over=0
  while :; do
    running=0
    for ((rank = 0; rank < nodes; rank++)); do
      [ -z "${codes[rank]-}" ] || continue
      if ! has_ended "$rank"; then running=$((running + 1)); continue; fi
      say "the container on ${names_of_nodes[rank]} ended with ${codes[rank]}"
      if [ "${codes[rank]}" -ne 0 ] && [ "$over" -eq 0 ]; then over=$((SECONDS + 1)); fi
      if [ "$rank" -eq "$coordinator" ] && [ "$over" -eq 0 ]; then over=$((SECONDS + drain + 1)); fi
    done
    [ "$running" -gt 0 ] || break
    if [ "$over" -gt 0 ] && [ "$SECONDS" -ge "$over" ]; then
      say "the benchmark is over, and containers that still run are ended: $running"
      break
    fi
    pause
  done
  end_steps
  worst=0
  for ((rank = 0; rank < nodes; rank++)); do
    if has_ended "$rank"; then code=${codes[rank]}; else code=1; fi
    [ -n "${ended_by_us[rank]-}" ] || [ "$code" -le "$worst" ] || worst=$code
  done
}

pause() {
  sleep 0.5 &
  child=$!
  wait "$child"
  child=
}

finish() {
  local code=${ended:-$?}
  trap - EXIT
  trap '' TERM INT HUP
  end_child
  end_steps
  # After a signal Slurm starts no more steps, and each node has ended its own container.
  if [ "$engine" = docker ] && [ -z "$ended" ] && [ "${#steps[@]}" -gt 0 ]; then
    timeout 90 bash "$script" sweep "${images[0]}"
  fi
  say "the job ends with exit code $code"
  exit "$code"
}

main() {
  names_of_nodes=() addresses=() images=() steps=() codes=() ended_by_us=() worst=0
  case ${1-} in
    look) exec 3>&1 >&2; look; exit ;;
    node) run_node "$2" "$3"; exit ;;
    sweep) on_all_nodes sweep-node "$2"; exit ;;
    sweep-node) sweep_node "$2"; exit ;;
    stop-node) find_engine; end_containers; exit ;;
  esac
  trap finish EXIT
  on_signals
  mkdir -p -- "$own" || exit 5
  rm -f -- "$own"/exit.* "$own/looked"
  say "job $SLURM_JOB_ID on $(uname -n)"
  check_nodes
  write_settings
  say "$program begins"
  start
  wait_for_all
  exit "$worst"
}
