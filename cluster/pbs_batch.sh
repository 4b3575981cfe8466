#!/usr/bin/env bash
# A reduction as one PBS job: the scheduler, the workers and the command, all inside this job's allocation.
#
#   python -m gdask.cluster script pbs > gdask.sh            once; then change the #PBS lines to what your site asks for
#   qsub -v GDASK_COMMAND="reduce @science.list",GDASK_PYTHON="$(command -v python3)" gdask.sh
#                                                            in the folder with the data, which all nodes must see
#
# One worker process for each MPI process of the selection (pbsdsh). PBS ends the job at its wall time with SIGTERM, the
# command stops in order; the same qsub again goes on from its last complete phase.
#PBS -N gdask
#PBS -l select=1:ncpus=2:mpiprocs=2:mem=8gb
#PBS -l walltime=02:00:00
#PBS -j oe
#PBS -r y
set -u
cd "${PBS_O_WORKDIR:?this is a script for qsub}" || exit 1
if [ -z "${GDASK_COMMAND:-}" ]; then
  echo "gdask: no command; expected: qsub -v GDASK_COMMAND=\"reduce @science.list\" ${0##*/}" >&2
  exit 2
fi
python=$(command -v "${GDASK_PYTHON:-python3}") || { echo "gdask: no ${GDASK_PYTHON:-python3}; pass GDASK_PYTHON with qsub -v" >&2; exit 1; }
PATH=$(dirname "$python"):$PATH # reduce and the other commands are beside it
umask 077 # whoever knows the scheduler's address can run code there: the file with it is for its owner alone
file=$PWD/.gdask-scheduler-${PBS_JOBID:-0}.json
scratch=${GDASK_SCRATCH:-${TMPDIR:-/tmp}}
# One thread pool for each core: libraries must not start their own inside a worker.
threads="OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1"
export $threads
export DASK_LOGGING__DISTRIBUTED="${DASK_LOGGING__DISTRIBUTED:-warning}"

rm -f "$file"
"$python" -m distributed.cli.dask_scheduler --scheduler-file "$file" --port 0 --no-dashboard ${GDASK_SCHEDULER_OPTIONS:-} &
scheduler=$!
# pbsdsh gives its processes neither folder nor environment.
pbsdsh -- "$(command -v env)" -C "$PWD" $threads "DASK_LOGGING__DISTRIBUTED=$DASK_LOGGING__DISTRIBUTED" \
  "$python" -m distributed.cli.dask_worker --scheduler-file "$file" --nworkers 1 --nthreads 1 \
  --memory-limit "${GDASK_MEMORY:-auto}" --local-directory "$scratch" --death-timeout 60 --no-dashboard ${GDASK_WORKER_OPTIONS:-} &
workers=$!

end() {
  kill "$workers" 2>/dev/null && wait "$workers"
  kill "$scheduler" 2>/dev/null && wait "$scheduler"
  rm -f "$file"
}
for _ in $(seq 300); do # until the scheduler has written where it is
  [ -s "$file" ] && break
  kill -0 "$scheduler" 2>/dev/null || break
  sleep 0.2
done
$GDASK_COMMAND --cluster "$file" &
reduction=$!
ended=
trap ended=1 TERM
wait "$reduction" # ends for the signal, too
if [ -n "$ended" ] && kill -TERM "$reduction" 2>/dev/null; then
  echo "gdask: the job is ended; the same qsub again goes on from the last complete phase"
fi
trap '' TERM
wait "$reduction"
code=$?
end
exit "$code"
