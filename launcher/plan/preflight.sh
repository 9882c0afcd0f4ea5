# What a node is asked before an engine starts: functions for a job's script (launcher/plan/preflight.py). Each says what
# is wrong by `fail CODE TEXT`: 3 the image, 4 the checkpoint, 8 the node itself. `say` and `fact` are the script's.
# shellcheck shell=bash

model='' mounted=() # set where the plan has a checkpoint

# What is wrong is said by name: it is what has to be staged. As launcher/model judges, as far as bash can: `mounted` are
# the directories that the container sees under the same paths. A program for each of hundreds of files would cost
# seconds, while GPUs wait: what can be asked of all at once is, and heads of files are read by bash itself.
pointer() {
  local text=
  IFS= LC_ALL=C read -r -d '' -n 64 text <"$1" # up to the first NUL: pointers and pages have none
  case ${text,,} in
    "version https://git-lfs"* | "version https://hawser"* | /annex/objects/* | "# xet version"*) return 0 ;;
    "<!doctype html"* | "<html"*) return 0 ;;
  esac
  return 1
} 2>/dev/null

# Which of check_checkpoint's `files` are safetensors files that are not as long as their headers say: their numbers.
cut_short() {
  local at=0 number length byte numbers=() names=()
  for number in "${!files[@]}"; do
    # Of one that has not even nine bytes nothing is known.
    [[ ${files[number]} == *.safetensors && ${sizes[${files[number]}]-0} -gt 8 ]] || continue
    numbers+=("$number") names+=("${files[number]}")
  done
  [ "${#names[@]}" -gt 0 ] || return 0
  {
    while read -ra byte; do
      number=${numbers[at]} name=${names[at]} at=$((at + 1))
      [ "${byte[8]-}" = 7b ] || continue # of another kind
      length=$((16#${byte[7]}${byte[6]}${byte[5]}${byte[4]}${byte[3]}${byte[2]}${byte[1]}${byte[0]}))
      if [ "$length" -lt 0 ] || [ "$length" -ge 100000000 ]; then
        printf '\n@%s 0 1\n' "$number"
      else
        printf '\n@%s %s %s\n' "$number" "${sizes[$name]}" "$((8 + length))"
        head -c "$((8 + length))" -- "$name"
      fi
    done < <(head -q -c 9 -- "${names[@]}" | od -An -v -w9 -t x1)
    printf '\n@0 0 0\n'
  } | LC_ALL=C grep -aoE '^@[0-9]+ [0-9]+ [0-9]+$|"data_offsets" *: *\[ *[0-9]+ *, *[0-9]+ *\]' | LC_ALL=C awk '
    /^@/ { if (known && size != start + end) print number; number = substr($1, 2); size = $2; start = $3; end = 0; known = 1; next }
    { split($0, part, /[],]/); if (part[2] + 0 > end) end = part[2] + 0 }'
}

leads_out() {
  local at tree
  [ -L "$1" ] || return 1
  at=$(realpath -m -- "$1")
  for tree in "$whole_model" "${mounted[@]}"; do
    case $at/ in "$tree"/*) return 1 ;; esac
  done
  return 0
}

check_checkpoint() {
  local index name missing=() weights=() wrong=() files=() whole_model size blocks each kind
  local -A sizes=() written=() kinds=() short=()
  [ -d "$model" ] || fail 4 "the checkpoint is not on $(uname -n): no directory $model"
  [[ ! $model =~ \.staging\.[0-9a-f]{12}/*$ && ( ! -d $model/.staging || -e $model/.complete.json ) ]] ||
    fail 4 "the checkpoint $model on $(uname -n) is half staged: its staging has not ended, or was killed"
  [ -s "$model/config.json" ] || missing+=(config.json)
  for index in "$model"/*.index.json; do
    [ -e "$index" ] || continue
    while read -r name; do
      weights+=("$name")
      [ -s "$model/$name" ] || missing+=("$name")
    done < <(grep -oE '"[^"]+\.(safetensors|bin|pt|pth)"' "$index" | tr -d '"' | sort -u)
  done
  if [ "${#weights[@]}" -eq 0 ]; then
    for name in "$model"/*.safetensors "$model"/*.bin "$model"/*.gguf "$model"/*.pt; do
      [ -s "$name" ] && weights+=("${name##*/}")
    done
    [ "${#weights[@]}" -gt 0 ] || missing+=("weight files")
  fi
  fact checkpoint_files "${#weights[@]}"
  fact checkpoint_config "sha256:$(sha256sum 2>/dev/null <"$model/config.json" | cut -d' ' -f1)"
  [ "${#missing[@]}" -eq 0 ] ||
    fail 4 "the checkpoint $model on $(uname -n) lacks ${#missing[@]} file${missing[1]+s}: ${missing[*]:0:10}"
  whole_model=$(realpath -m -- "$model")
  for name in "$model"/*.json "$model"/*.model "$model"/*.jinja "${weights[@]/#/$model/}"; do
    [ -e "$name" ] || [ -L "$name" ] || continue
    files+=("$name")
  done
  while read -r size blocks each name; do
    sizes[$name]=$size written[$name]=$((blocks * each))
  done < <(stat -L -c '%s %b %B %n' -- "${files[@]}" 2>/dev/null)
  while read -r kind name; do kinds[$name]=$kind; done < <(stat -L -f -c '%T %n' -- "${files[@]}" 2>/dev/null)
  while read -r name; do short[${files[name]}]=yes; done < <(cut_short)
  for name in "${files[@]}"; do
    size=${sizes[$name]-0}
    if leads_out "$name"; then
      wrong+=("${name##*/} is a link that leads out of what the job mounts")
    elif pointer "$name"; then
      wrong+=("${name##*/} is a pointer or a page, not the file itself")
    elif [ -n "${short[$name]-}" ]; then
      wrong+=("${name##*/} is not as long as its header says")
    else
      case ${kinds[$name]-} in ext2/ext3 | xfs | lustre) ;; *) continue ;; esac
      [ "$size" -le 65536 ] || [ "$((${written[$name]} * 2))" -ge "$size" ] ||
        wrong+=("${name##*/} is hollow: most of it was never written")
    fi
  done
  [ "${#wrong[@]}" -eq 0 ] ||
    fail 4 "the checkpoint $model on $(uname -n) is not whole: $(printf '%s; ' "${wrong[@]:0:10}")"
  say "checkpoint $model: whole, ${#weights[@]} weight file${weights[1]+s}"
}

# Whether config.json says what the runner file says: pairs of key and value. A multimodal model has its text model's
# sizes in a mapping of their own, so that one of several counts.
check_identity() {
  local key value found text
  text=$(tr -s '[:space:]' ' ' <"$model/config.json")
  while [ "$#" -ge 2 ]; do
    key=$1 value=$2
    shift 2
    if [ "$key" = architecture ]; then
      found=$(grep -oE '"architectures" ?: ?\[ ?"[^"]*"' <<<"$text" | sed -E 's/.*"([^"]*)"$/\1/')
    else
      found=$(grep -oE "\"$key\" ?: ?(\"[^\"]*\"|[^],} ]+)" <<<"$text" | sed -E 's/^"[^"]*" ?: ?//; s/^"//; s/"$//')
    fi
    grep -qxF -- "$value" <<<"$found" || fail 4 "the checkpoint $model on $(uname -n) is another model:" \
      "$key is $(tr '\n' ' ' <<<"${found:-not said}" | head -c 200)and $value by the runner file"
  done
  fact checkpoint_identity "as the runner file declares it"
}

# Percent of the memory in use, a line for each GPU, by the vendor's tool. Returns 1 where there is none, 2 where it fails.
gpu_memory() {
  local used total text
  if command -v nvidia-smi >/dev/null; then
    text=$(timeout 60 nvidia-smi --query-gpu=memory.used,memory.total --format=csv,noheader,nounits 2>&1) || { printf '%s\n' "$text"; return 2; }
    while IFS=', ' read -r used total; do
      case $used$total in '' | *[!0-9]*) continue ;; esac
      printf '%s\n' "$((used * 100 / total))"
    done <<<"$text"
  elif command -v rocm-smi >/dev/null; then
    text=$(timeout 60 rocm-smi --showmemuse 2>&1) || { printf '%s\n' "$text"; return 2; }
    grep -oE 'VRAM%\): [0-9]+' <<<"$text" | grep -oE '[0-9]+$'
  else
    return 1
  fi
}

# Whether WANTED GPUs are there, and, where they are the job's ALONE, at most 10 % of each one's memory is in use within
# PATIENCE seconds: an earlier job's memory takes a while to be free.
look_at_gpus() {
  local wanted=$1 alone=$2 patience=$3 began=$SECONDS used count code
  while :; do
    used=$(gpu_memory)
    code=$?
    case $code in
      0) ;;
      1) say "the node $(uname -n): no tool tells of its GPUs, which are not looked at"; return ;;
      *) fail 8 "the node $(uname -n): its GPUs do not answer: $(tail -n 1 <<<"$used" | head -c 300)" ;;
    esac
    count=$(grep -c . <<<"$used")
    [ "$count" -ge "$wanted" ] || fail 8 "the node $(uname -n): it has $count GPUs, and the job needs $wanted"
    if [ "$alone" != yes ] || [ "$(sort -n <<<"$used" | tail -n 1)" -le 10 ]; then break; fi
    [ "$((SECONDS - began))" -lt "$patience" ] ||
      fail 8 "the node $(uname -n): the memory of its GPUs is in use: $(tr '\n' ' ' <<<"$used")percent, after $patience s"
    sleep 5 & wait "$!"
  done
  fact gpus "$count"
}

# A squash file begins with its mark, and is as long as its superblock says (squashfs 4.0, bytes 40 to 47).
look_at_image() {
  local size length
  [ -r "$1" ] || fail 3 "image $1: cannot be read on $(uname -n)"
  [ "$(head -c 4 -- "$1" 2>/dev/null)" = hsqs ] || fail 3 "image $1: no squash file, as $(uname -n) sees it"
  size=$(stat -L -c %s -- "$1")
  length=$(od -An -t u8 -j 40 -N 8 -- "$1" | tr -d ' ')
  [ "${length:-0}" -le "$size" ] || fail 3 "image $1: $size bytes long on $(uname -n), and $length by its superblock"
}

# Directories that the job writes to, each with so many mebibytes left.
look_at_directories() {
  local need=$1 directory probe left
  shift
  for directory in "$@"; do
    probe=$directory/.launcher-probe.$$
    { mkdir -p -- "$directory" && : >"$probe"; } 2>/dev/null ||
      fail 8 "the node $(uname -n): $directory cannot be written"
    rm -f -- "$probe"
    left=$(df -Pm -- "$directory" | tail -n 1 | tr -s ' ' | cut -d' ' -f4)
    case $left in '' | *[!0-9]*) continue ;; esac
    [ "$left" -ge "$need" ] || fail 8 "the node $(uname -n): $directory has $left MiB left, and at least $need are needed"
  done
}

# What this node and the login node agree about, in a directory that both see (launcher/core/node_partner.py). `ask_login`
# asks whether the login node sees a lock of ours, and `hear_login` reads the answer once all else was looked at. Where no
# launcher attends, nothing is known.
asked_at='' held='' locks_local='' # `yes` where the runner file says that locks are each host's own
unheld() {
  if [ -n "$locks_local" ]; then
    fact locks "are each host's own, as the runner file says: $*"
  else
    fail 8 "the node $(uname -n): $*; where that is known, \`locks: local\` of its \`storage\` in the runner file lets jobs go on"
  fi
}
ask_login() {
  local code
  [ -e "$1/locks/login" ] && { exec {held}<"$1/locks/node.${SLURM_PROCID:-0}"; } 2>/dev/null || return 0
  flock -n -s "$held" 2>/dev/null # a shared one, which a file that can only be read has as well
  code=$?
  [ "$code" -ne 127 ] || return 0
  [ "$code" -eq 0 ] || { unheld "a lock in $1 cannot be had there (flock: $code)"; return 0; }
  { : >"$1/locks/asked.${SLURM_PROCID:-0}"; } 2>/dev/null && asked_at=$SECONDS
  return 0
}

# By the time that the file server gives to a new file, as the login node saw it a moment before the job was let go. Where
# nodes stamp files themselves, only a clock that is behind shows.
look_at_clock() {
  local sent offset probe=$1/.launcher-clock.$$ now off
  { read -r sent offset <"$1/clock" && : >"$probe"; } 2>/dev/null || return 0
  now=$(date +%s)
  off=$((now - $(stat -c %Y -- "$probe") - offset))
  rm -f -- "$probe"
  [ "$((now + 5))" -ge "$sent" ] || off=$((now - sent))
  fact clock_offset "$off"
  [ "${off#-}" -le 5 ] || fail 8 "the node $(uname -n): its clock is $off s off the login node's"
}

hear_login() {
  local locks=$1/locks me=${SLURM_PROCID:-0} answer='' login seen
  [ -e "$locks/login" ] || return 0
  while [ -n "$asked_at" ]; do
    ls -a -- "$locks" >/dev/null 2>&1 # NFS looks again for a name that was not there
    { read -r answer <"$locks/answer.$me"; } 2>/dev/null && break
    [ "$((SECONDS - asked_at))" -lt 8 ] || break
    sleep 0.2 & wait "$!"
  done
  if [ -z "$answer" ]; then
    say "the node $(uname -n): nobody on the login node says whether locks hold"
    return
  fi
  exec {login}<"$locks/login"
  flock -n -s "$login" 2>/dev/null
  seen=$?
  exec {held}<&- {login}<&-
  rm -f -- "$locks/asked.$me"
  if [ "$answer" != holds ]; then
    unheld "a lock that it holds in $1 is, on the login node: $answer"
  elif [ "$seen" -eq 0 ]; then
    unheld "it does not see the lock that the login node holds in $1"
  else
    fact locks "hold with the login node${locks_local:+, though the runner file says that they do not}"
  fi
}
