# What a checkout's bash launcher would call, recorded: run in a mount and network namespace of its own, with arguments
# SCRIPT WORKSPACE RECORD MODEL IMAGE…. The whole file system is a layer over the real one, which is thrown away with the namespace.
# shellcheck shell=bash
set -u
script=$1 workspace=$2 record=$3 model=$4
stubs=/usr/local/sbin # first also where a login shell sets PATH anew
layers=$(mktemp -d) || exit 97
mount --make-rprivate / && mount -t tmpfs shadow "$layers" && mkdir "$layers"/{upper,work,root,own,own-work} &&
  mount -t overlay shadow -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root" || exit 97
root=$layers/root
mount --rbind /proc "$root/proc" && mount --rbind /dev "$root/dev" && mount -t tmpfs shadow "$root/run" || exit 97
mkdir -p "$root$workspace" "$root$record"
# The workspace may be of another file system, which the layer over the root does not have.
mount -t overlay shadow -o "lowerdir=$workspace,upperdir=$layers/own,workdir=$layers/own-work" "$root$workspace" || exit 97
mount --bind "$record" "$root$record" || exit 97
# Checkpoint and images of the plan are taken to be there.
mkdir -p "$root$stubs" ${model:+"$root$model"}
for image in "${@:5}"; do
  mkdir -p "$root${image%/*}" && echo shadow >"$root$image"
done
cat >"$root$stubs/stub" <<'STUB'
#!/bin/bash
name=${0##*/}
call=$(mktemp "$SHADOW_RECORD/$(date +%s%N).XXXXXX")
printf '%s\0' "$name" "$@" >"$call"
env -0 >"$call.env"
case $name in
  salloc) echo "salloc: Granted job allocation 4242" >&2 ;;
  squeue) case "$*" in *%A*) echo 4242 ;; *%N*) echo node00,node01 ;; esac ;;
  scontrol) case "$*" in *hostnames*) for ((i = 0; i < ${SLURM_NNODES:-2}; i++)); do echo "node0$i"; done ;; esac ;;
  ip) echo "1.1.1.1 via 10.0.0.1 dev eth0 src 10.0.0.10 uid 0" ;;
  sbatch)
    nodes=2 output=/dev/null words=("$@")
    for ((i = 0; i < $#; i++)); do
      case ${words[i]} in -N) nodes=${words[i + 1]} ;; --output) output=${words[i + 1]//%j/4242} ;; esac
    done
    mkdir -p "$(dirname "$output")"
    case ${words[-1]} in
      *.slurm | *.sh) SLURM_JOB_ID=4242 SLURM_JOB_NODELIST=node00 SLURM_NNODES=$nodes SLURM_SUBMIT_DIR=$PWD \
        bash "${words[-1]}" >"$output" 2>&1 </dev/null ;;
    esac
    case "$*" in *--parsable*) echo 4242 ;; *) echo "Submitted batch job 4242" ;; esac
    ;;
  srun)
    case " $*" in *" --container-image="*) exit 0 ;; esac
    while [[ ${1-} == -* ]]; do shift; done
    SLURM_PROCID=0 SLURMD_NODENAME=node00 "$@"
    ;;
  sudo)
    while [[ ${1-} == -* ]]; do shift; done
    case ${1-} in docker | rm | cp | chown) "$@" ;; esac
    ;;
esac
exit 0
STUB
chmod +x "$root$stubs/stub"
for name in salloc sbatch sbcast srun squeue scancel scontrol sacct sinfo docker podman enroot unsquashfs flock sudo ip sleep \
  rocm-smi nvidia-smi srtctl uv git curl wget hf ssh; do
  cp "$root$stubs/stub" "$root$stubs/$name"
done
rm "$root$stubs/stub"
# shellcheck disable=SC2016
SHADOW_RECORD=$record PATH=$stubs:$PATH exec chroot "$root" /bin/bash -c 'cd "$1" && bash "$2"' bash "$workspace" "$script"
