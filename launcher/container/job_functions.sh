# The functions of a job's script, by the part in which job_functions.py puts them into the scripts that need them.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154,SC2317  # the facts before them are rendered

# --- common

say() { printf 'launcher: %s\n' "$*"; }
fail() { printf 'launcher: error: %s\n' "${*:2}" >&2; exit "$1"; }
fact() { printf '%s=%s\n' "$1" "$2" >>"$own/facts.txt"; }

# bash runs a trap only between two commands, or while it waits: so whatever takes long runs beside it.
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
  for ((look = 0; look < grace * 10; look++)); do
    kill -0 "$child" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$child" 2>/dev/null
  wait "$child" 2>/dev/null
}

# --- end

# By our label alone: a container that only has the name of ours is somebody else's.
end_container() {
  local id
  [ -n "$engine" ] || return 0
  own_containers 2>/dev/null | while read -r id; do
    # podman's rm alone would wait ten seconds for a program that heeds no TERM.
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
  take_away >/dev/null 2>&1
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

# What the weights are takes more than bash: the launcher judges it by these, before it believes a result.
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

# In a step of its own, without GPUs. Nobody sees the file under its name before it is whole.
# shellcheck disable=SC2317  # the step's bash calls it
import_image() {
  local squash=$1 uri=$2 lock=$3 wait=$4 limit=$5 part=$6 temp=$7 import=
  error() { printf 'launcher: error: image %s: %s\n' "$uri" "$*" >&2; }
  # enroot does not remove its temporaries when a second signal reaches it, and Slurm sends one to every process.
  remove() {
    chmod -R u+rwX -- "$@" 2>/dev/null # in layers are directories that even their owner may not write
    rm -rf -- "$@"
  }
  leave() {
    trap '' TERM INT HUP
    [ -z "$import" ] || kill -TERM "$import" 2>/dev/null
    wait
    remove "$part.$SLURM_JOB_ID" "$temp.$SLURM_JOB_ID"
    exit "$1"
  }
  trap 'leave 143' TERM
  trap 'leave 130' INT
  trap 'leave 129' HUP
  shift 7
  # Jobs of other users import here too: what is made has the mode of the directory above it, and everybody reads.
  make_directory() {
    [ -d "$1" ] || { make_directory "${1%/*}" && mkdir -- "$1" && chmod --reference="${1%/*}" -- "$1"; } || [ -d "$1" ]
  }
  make_directory "${squash%/*}" || { error "its directory cannot be made"; leave 3; }
  [ "$#" -eq 0 ] || (umask 077 && mkdir -p -- "$@") || { error "enroot's directories cannot be made"; leave 3; }
  (umask 0 && : >>"$lock") 2>/dev/null
  { exec 9>>"$lock"; } 2>/dev/null || exec 9<"$lock" || {
    error "the lock $lock cannot be opened, $(stat -c 'owned by %U, mode 0%a' -- "$lock" 2>&1)"
    leave 3
  }
  flock -w "$wait" 9 & import=$!
  wait "$import" || { error "its lock $lock was not had within $wait s"; leave 3; }
  if unsquashfs -l "$squash" >/dev/null 2>&1; then
    printf 'launcher: image %s: another job imported it\n' "$uri"
    leave 0
  fi
  remove "$part".* "$temp".*
  (umask 077 && mkdir -p -- "$temp.$SLURM_JOB_ID") || { error "enroot has no room for its temporaries"; leave 3; }
  # Closed for enroot: what an import that was killed leaves behind must not keep the lock.
  TMPDIR=$temp.$SLURM_JOB_ID ENROOT_TEMP_PATH=$temp.$SLURM_JOB_ID \
    timeout "$limit" enroot import -o "$part.$SLURM_JOB_ID" "$uri" 9>&- & import=$!
  wait "$import" || { error "enroot import ended with $?"; leave 3; }
  import=
  unsquashfs -l "$part.$SLURM_JOB_ID" >/dev/null 2>&1 || { error "what enroot wrote is not whole"; leave 3; }
  chmod a+r -- "$part.$SLURM_JOB_ID"
  mv -f -- "$part.$SLURM_JOB_ID" "$squash" || { error "it cannot be published as $squash"; leave 3; }
  printf 'launcher: image %s: imported to %s\n' "$uri" "$squash"
  leave 0
}

# --- have

# REFERENCE, then the arguments of `import_image`, whose environment is `image_environment`.
have_image() {
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
  # The job's GPUs were ours, and idle, for so long.
  fact image_import_seconds "$((SECONDS - began))"
  [ "$code" -eq 0 ] || fail 3 "image $reference: is not on this node, and was not imported"
}

# --- pull

# The tag is resolved once, and the container runs what it named then.
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

stage_in() {
  mkdir -m 700 -- "$copy" || fail 5 "no copy of the checkout can be made at $copy on $(uname -n)"
  copied=yes
  run_step tar -xzf "$archive" -C "$copy" ||
    fail 5 "the checkout cannot be unpacked to $copy on $(uname -n): $(df -h "$copy" | tail -n 1)"
}

# After a signal there are seconds left, and logs are better than nothing.
hurry() {
  trap '' TERM INT HUP
  code=$1
  for ((look = 0; look < 150; look++)); do
    kill -0 "$child" 2>/dev/null || return
    sleep 0.1
  done
  kill -TERM "$child" 2>/dev/null
}

bring_back() {
  local name found=() before=$code result
  cd "$copy" || return 1
  shopt -s nullglob globstar
  list_back
  for name in "${back[@]}"; do
    [ -e "$name" ] && found+=("$name")
  done
  if [ "${#found[@]}" -eq 0 ]; then
    say "nothing of what is brought back is in $copy"
    return 0
  fi
  trap 'hurry 143' TERM
  trap 'hurry 130' INT
  trap 'hurry 129' HUP
  tar -czf "$own/back.tar.gz.part" -- "${found[@]}" &
  child=$!
  [ "$code" -le 128 ] || hurry "$code"
  wait "$child"
  result=$?
  # A signal ended that wait.
  [ "$code" -eq "$before" ] || { wait "$child"; result=$?; }
  child=
  trap '' TERM INT HUP
  [ "$result" -eq 0 ] && mv -f -- "$own/back.tar.gz.part" "$own/back.tar.gz"
}

return_copy() {
  if ! bring_back; then
    printf 'launcher: error: results cannot be brought back from %s\n' "$copy" >&2
    [ "$code" -ne 0 ] || code=5
  fi
  # A benchmark may leave directories that even their owner may not write.
  rm -rf -- "$copy" 2>/dev/null || { chmod -R u+rwX -- "$copy"; rm -rf -- "$copy"; }
}

# --- carry

# The container's bash sets these. The engine would cut a value of several lines, or take the image's instead.
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
