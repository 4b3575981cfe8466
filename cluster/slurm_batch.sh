#!/usr/bin/env bash
# A reduction as one SLURM job: the scheduler, the workers and the command, all inside this job's allocation.
#
#   python -m gdask.cluster script slurm > gdask.sh          once; then change the #SBATCH lines to what your site asks for
#   sbatch gdask.sh reduce @science.list                     in the folder with the data, which all nodes must see
#   sbatch --nodes=4 --ntasks-per-node=16 gdask.sh reduce @science.list
#
# One worker process for each task. Shortly before its wall time the job stops the command and puts itself into the queue
# again, as often as GDASK_RESTARTS says (default 20); the command goes on from its last complete phase.
#SBATCH --job-name=gdask
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gdask-%j.log
set -u
if [ $# -eq 0 ]; then
  echo "gdask: no command; expected: sbatch ${0##*/} reduce @science.list" >&2
  exit 2
fi
python=${GDASK_PYTHON:-python3}
command -v "$python" >/dev/null || { echo "gdask: no $python; activate gdask's environment before sbatch, or set GDASK_PYTHON" >&2; exit 1; }
umask 077 # whoever knows the scheduler's address can run code there: the file with it is for its owner alone
file=$PWD/.gdask-scheduler-$SLURM_JOB_ID.json
scratch=${GDASK_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}
memory=auto
[ -n "${SLURM_MEM_PER_CPU:-}" ] && memory=$((SLURM_MEM_PER_CPU * ${SLURM_CPUS_PER_TASK:-1}))MiB
memory=${GDASK_MEMORY:-$memory}
# One thread pool for each core: libraries must not start their own inside a worker.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export DASK_LOGGING__DISTRIBUTED="${DASK_LOGGING__DISTRIBUTED:-warning}"

rm -f "$file"
"$python" -m distributed.cli.dask_scheduler --scheduler-file "$file" --port 0 --no-dashboard ${GDASK_SCHEDULER_OPTIONS:-} &
scheduler=$!
srun --overlap --kill-on-bad-exit=0 "$python" -m distributed.cli.dask_worker --scheduler-file "$file" --nworkers 1 \
  --nthreads "${SLURM_CPUS_PER_TASK:-1}" --memory-limit "$memory" --local-directory "$scratch" --death-timeout 60 \
  --no-dashboard ${GDASK_WORKER_OPTIONS:-} &
workers=$!

end() { # the workers first: what they are told by a scheduler that ends is no news
  kill "$workers" 2>/dev/null && wait "$workers"
  kill "$scheduler" 2>/dev/null && wait "$scheduler"
  rm -f "$file"
}
for _ in $(seq 300); do # until the scheduler has written where it is
  [ -s "$file" ] && break
  kill -0 "$scheduler" 2>/dev/null || break
  sleep 0.2
done
"$@" --cluster "$file" &
reduction=$!
near=
trap near=1 USR1
wait "$reduction" # ends for the warning, too
if [ -n "$near" ] && kill -TERM "$reduction" 2>/dev/null; then
  echo "gdask: the wall time is near, the command is stopped"
fi
trap '' USR1
wait "$reduction"
code=$?
end
if [ -n "$near" ] && [ "$code" -eq 143 ]; then # stopped; one that ended by itself in the meantime is not begun again
  if [ "${SLURM_RESTART_COUNT:-0}" -lt "${GDASK_RESTARTS:-20}" ]; then
    echo "gdask: into the queue again; the command will go on from its last complete phase"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  echo "gdask: not submitted again after ${SLURM_RESTART_COUNT} times (GDASK_RESTARTS); sbatch goes on from here" >&2
fi
exit "$code"
