# What one host sees. Arguments: TOKEN login DIRECTORY... here, TOKEN compute DIRECTORY... on a node, and then, here
# again, TOKEN after and INDEX DIRECTORY for each directory in which the login host has left its file.
#
# Every line that counts is "token, tab, key, tab, value": prologs and profiles print, too. It is sh and not Python,
# because a compute node may not have this Python, or may not see where it lies.
token=$1; side=$2; shift 2
tell() { key=$1; shift; printf '%s\t%s\t%s\n' "$token" "$key" "$*"; }
flat() { tr '\n\t' '  '; }

if [ "$side" = after ]; then
  while [ $# -gt 1 ]; do
    i=$1; at=$2; shift 2
    ls -a "$at" >/dev/null 2>&1
    [ -e "$at/.launcher-look-$token-$i-compute" ] && tell "$i" yes
    rm -f "$at/.launcher-look-$token-$i-login" "$at/.launcher-look-$token-$i-compute"
  done
  exit 0
fi

tell name "${SLURMD_NODENAME:-$(uname -n)}"
tell arch "$(uname -m)"
if command -v enroot >/dev/null 2>&1; then
  tell enroot "$(enroot version 2>&1 | head -n 1 | flat)"
else
  tell enroot.none ""
fi
n=0; for d in /dev/nvidia[0-9] /dev/nvidia[0-9][0-9]; do [ -e "$d" ] && n=$((n + 1)); done; tell devices "$n"
tell mounts "$(findmnt -J -o TARGET,SOURCE,FSTYPE 2>/dev/null | flat)"

# The node looks for a file that the login host wrote into a directory, and the other way round ("after"), so that we
# know which directories are shared. `set -C` opens with O_EXCL.
i=0
for wanted in "$@"; do
  at=$wanted
  while [ ! -e "$at" ] && [ "$at" != / ]; do at=$(dirname "$at"); done
  tell "$i.at" "$at"
  tell "$i.mount" "$(findmnt -J -T "$at" -o TARGET,SOURCE,FSTYPE 2>&1 | flat)"
  tell "$i.space" "$(stat -f -c '%a %S' "$at" 2>/dev/null)"
  if [ -d "$at" ]; then
    ls -a "$at" >/dev/null 2>&1
    [ -r "$at" ] && [ -x "$at" ] && tell "$i.readable" yes
    [ "$side" = compute ] && [ -e "$at/.launcher-look-$token-$i-login" ] && shared=yes || shared=no
    error=$( (set -C; : > "$at/.launcher-look-$token-$i-$side") 2>&1 )
    if [ $? -eq 0 ]; then
      tell "$i.written" yes
      [ "$side" = compute ] && [ $shared = no ] && rm -f "$at/.launcher-look-$token-$i-$side"
    else
      tell "$i.refused" "$(printf %s "${error##*: }" | flat)"
    fi
    [ "$side" = compute ] && tell "$i.shared" "$shared"
  else
    tell "$i.refused" "$at is not a directory"
  fi
  tell "$i.end" ""
  i=$((i + 1))
done
tell end ""
