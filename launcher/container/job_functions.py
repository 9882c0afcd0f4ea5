"""The functions of a job's script, as bash text: each is put into the scripts that need it."""

COMMON = r"""
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
"""

KEEP = r"""
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
"""

IMPORT = r"""
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
"""

PULL = r"""
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
"""

STAGE = r"""
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
"""

CARRIED = "LAUNCHER_ENVIRONMENT"
"""The variable that brings others into the container, as commands that set them."""

SET_CARRIED = f'eval "${CARRIED}"; unset {CARRIED}; exec bash "$0"'
"""What ``bash -c`` in the container is given before the script: it sets the variables, and becomes the script."""

SET_CARRIED_AT_LOGIN = f'eval "${CARRIED}"; unset {CARRIED}; exec bash -lc \'exec bash "$0"\' "$0"'
"""The same where the script runs in a login shell."""

READ_CARRIED = 'eval "$(cat)"; exec bash -lc "$0" </dev/null'
"""The same where the commands come by standard input, and the script is a command of a login shell."""

CARRY = r"""
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
"""
