# The functions of a job's script, in parts; job_functions.py puts each part into the scripts that need it.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317  # the rendered script sets the variables before them

# --- common

say() { printf 'launcher: %s\n' "$*"; }
fail() { printf 'launcher: error: %s\n' "${*:2}" >&2; exit "$1"; }
fact() { printf '%s=%s\n' "$1" "$2" >>"$own/facts.txt"; }

# bash runs a trap only between two commands, or while it waits: so long commands run in the background.
child=
run_step() {
  local code
  "$@" &
  child=$!
  wait "$child"
  code=$?
  child=
  return "$code"
}

end_child() {
  [ -n "$child" ] || return 0
  kill -TERM "$child" 2>/dev/null
  for ((attempt = 0; attempt < grace * 10; attempt++)); do
    kill -0 "$child" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$child" 2>/dev/null
  wait "$child" 2>/dev/null
}

# --- end

# Only by our label: a container that has just the same name belongs to somebody else.
end_container() {
  local id
  [ -n "$engine" ] || return 0
  own_containers 2>/dev/null | while read -r id; do
    # podman's rm alone waits ten seconds for a program that ignores TERM.
    "$engine" kill "$id" >/dev/null 2>&1
    "$engine" rm --force "$id" >/dev/null 2>&1
  done
}

finish() {
  local code=${ended:-$?}
  trap - EXIT
  trap '' TERM INT HUP
  end_container
  end_child
  end_container
  remove_engine_container >/dev/null 2>&1
  [ -z "$copied" ] || return_copy
  say "the job ends with exit code $code"
  exit "$code"
}
trap finish EXIT
# Slurm's TERM can come twice, to this script and to all processes of its step.
ended=
on_signal() {
  trap '' TERM INT HUP
  ended=$1
  exit "$1"
}
trap 'on_signal 143' TERM
trap 'on_signal 130' INT
trap 'on_signal 129' HUP

# --- keep

# bash cannot check what the weights are: the launcher checks these files before it accepts a result.
keep_checkpoint() {
  local name length
  for name in config.json hf_quant_config.json; do
    [ ! -f "$model/$name" ] || head -c 4194304 -- "$model/$name" >"$own/$name"
  done
  [ "$1" = headers ] || return 0
  for name in "$model"/*.safetensors; do
    length=$(od -An -t u8 -N 8 -- "$name" | tr -d ' ') && head -c "$((8 + length))" -- "$name"
  done | gzip -1 >"$own/headers.gz"
}

# --- import

# Runs in its own step, without GPUs. The file gets its final name only when it is complete.
# shellcheck disable=SC2317  # the step's bash calls it
import_image() {
  local squash=$1 uri=$2 lock=$3 wait=$4 limit=$5 part=$6 temp=$7 import=
  error() { printf 'launcher: error: image %s: %s\n' "$uri" "$*" >&2; }
  # enroot leaves its temporary files if it gets a second signal, and Slurm signals every process.
  remove() {
    chmod -R u+rwX -- "$@" 2>/dev/null # layers contain directories that their owner may not write
    rm -rf -- "$@"
  }
  exit_clean() {
    trap '' TERM INT HUP
    [ -z "$import" ] || kill -TERM "$import" 2>/dev/null
    wait
    remove "$part.$SLURM_JOB_ID" "$temp.$SLURM_JOB_ID"
    exit "$1"
  }
  trap 'exit_clean 143' TERM
  trap 'exit_clean 130' INT
  trap 'exit_clean 129' HUP
  shift 7
  # Jobs of other users import here too: a new directory gets the mode of its parent, and images are readable by all.
  make_directory() {
    [ -d "$1" ] || { make_directory "${1%/*}" && mkdir -- "$1" && chmod --reference="${1%/*}" -- "$1"; } || [ -d "$1" ]
  }
  make_directory "${squash%/*}" || { error "its directory cannot be made"; exit_clean 3; }
  [ "$#" -eq 0 ] || (umask 077 && mkdir -p -- "$@") || { error "enroot's directories cannot be made"; exit_clean 3; }
  (umask 0 && : >>"$lock") 2>/dev/null
  { exec 9>>"$lock"; } 2>/dev/null || exec 9<"$lock" || {
    error "the lock $lock cannot be opened, $(stat -c 'owned by %U, mode 0%a' -- "$lock" 2>&1)"
    exit_clean 3
  }
  flock -w "$wait" 9 & import=$!
  wait "$import" || { error "its lock $lock was not had within $wait s"; exit_clean 3; }
  if unsquashfs -l "$squash" >/dev/null 2>&1; then
    printf 'launcher: image %s: another job imported it\n' "$uri"
    exit_clean 0
  fi
  remove "$part".* "$temp".*
  (umask 077 && mkdir -p -- "$temp.$SLURM_JOB_ID") || { error "enroot has no room for its temporaries"; exit_clean 3; }
  # 9>&-: processes that a killed import leaves behind must not keep the lock.
  TMPDIR=$temp.$SLURM_JOB_ID ENROOT_TEMP_PATH=$temp.$SLURM_JOB_ID \
    timeout "$limit" enroot import -o "$part.$SLURM_JOB_ID" "$uri" 9>&- & import=$!
  wait "$import" || { error "enroot import ended with $?"; exit_clean 3; }
  import=
  unsquashfs -l "$part.$SLURM_JOB_ID" >/dev/null 2>&1 || { error "what enroot wrote is not whole"; exit_clean 3; }
  chmod a+r -- "$part.$SLURM_JOB_ID"
  mv -f -- "$part.$SLURM_JOB_ID" "$squash" || { error "it cannot be published as $squash"; exit_clean 3; }
  printf 'launcher: image %s: imported to %s\n' "$uri" "$squash"
  exit_clean 0
}

# --- have

# REFERENCE, then the arguments of `import_image`, whose environment is `image_environment`.
ensure_image() {
  local reference=$1 began=$SECONDS code
  shift
  if unsquashfs -l "$1" >/dev/null 2>&1; then
    say "image $reference: is on this node"
    fact image_import_seconds 0
    return
  fi
  run_step srun --nodes=1 --ntasks=1 --gres=none --export=ALL env "${image_environment[@]}" \
    bash -c "$(declare -f import_image); import_image \"\$@\"" bash "$@"
  code=$?
  # The job's GPUs were idle during the import.
  fact image_import_seconds "$((SECONDS - began))"
  [ "$code" -eq 0 ] || fail 3 "image $reference: is not on this node, and was not imported"
}

# --- pull

# The tag is resolved once, and the container runs the image that it named then.
pull_image() {
  local program=$1 reference=$2 repository=$3 line
  if ! run_step "$program" pull --quiet "$reference"; then
    "$program" image inspect "$reference" >/dev/null 2>&1 ||
      fail 3 "image $reference: cannot be pulled, and is not on $(uname -n)"
    say "image $reference: cannot be pulled; the one that is on $(uname -n) is used"
  fi
  image=$("$program" image inspect --format '{{.Id}}' "$reference") || fail 3 "image $reference: has no id"
  while read -r line; do
    case $line in "$repository"@* | */"$repository"@*) image=$line; break ;; esac
  done < <("$program" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$reference")
  fact image "$image"
  say "image $reference: $image"
}

# --- stage

unpack_checkout() {
  mkdir -m 700 -- "$copy" || fail 5 "no copy of the checkout can be made at $copy on $(uname -n)"
  copied=yes
  run_step tar -xzf "$archive" -C "$copy" ||
    fail 5 "the checkout cannot be unpacked to $copy on $(uname -n): $(df -h "$copy" | tail -n 1)"
}

# After a signal only seconds are left: packing gets 15 of them, so that logs may still be returned.
limit_packing() {
  trap '' TERM INT HUP
  code=$1
  for ((attempt = 0; attempt < 150; attempt++)); do
    kill -0 "$child" 2>/dev/null || return
    sleep 0.1
  done
  kill -TERM "$child" 2>/dev/null
}

pack_returned_files() {
  local name found=() before=$code result
  cd "$copy" || return 1
  shopt -s nullglob globstar
  list_returned_files
  for name in "${back[@]}"; do
    [ -e "$name" ] && found+=("$name")
  done
  if [ "${#found[@]}" -eq 0 ]; then
    say "nothing of what is brought back is in $copy"
    return 0
  fi
  trap 'limit_packing 143' TERM
  trap 'limit_packing 130' INT
  trap 'limit_packing 129' HUP
  tar -czf "$own/back.tar.gz.part" -- "${found[@]}" &
  child=$!
  [ "$code" -le 128 ] || limit_packing "$code"
  wait "$child"
  result=$?
  # A signal interrupted the wait.
  [ "$code" -eq "$before" ] || { wait "$child"; result=$?; }
  child=
  trap '' TERM INT HUP
  [ "$result" -eq 0 ] && mv -f -- "$own/back.tar.gz.part" "$own/back.tar.gz"
}

return_copy() {
  if ! pack_returned_files; then
    printf 'launcher: error: results cannot be brought back from %s\n' "$copy" >&2
    [ "$code" -ne 0 ] || code=5
  fi
  # A benchmark may leave directories that even their owner may not write.
  rm -rf -- "$copy" 2>/dev/null || { chmod -R u+rwX -- "$copy"; rm -rf -- "$copy"; }
}

# --- carry

# The container's bash sets these variables. An engine would truncate a value of several lines, or use the image's.
carry() {
  local name quoted
  for name in "$@"; do
    [ -n "${!name+set}" ] || continue
    printf -v quoted %q "${!name}"
    LAUNCHER_ENVIRONMENT+="export $name=$quoted; "
  done
  export LAUNCHER_ENVIRONMENT
}
LAUNCHER_ENVIRONMENT=
