#!/usr/bin/env bash
# What is run wherever a GPU is at hand: the kernels against their references, the same under compute-sanitizer, a
# model against transformers, and the tables of figures. README.md beside this file says what each piece shows.
#
#     cuda/check/run.sh [--bin FOLDER] [--out FOLDER] [--only PIECES]     with a GPU
#     cuda/check/run.sh --stand-in [--out FOLDER] [--only PIECES]         without one: small shapes, no meaning in times
#
# PIECES are names with commas between, of: kernels sanitizer reference ceilings table batch-invariant server. Each
# has its own time limit, and all together stay below 8 minutes. FOLDER of programs is what build.sh made.
#
# Into the output folder go results.jsonl (every figure), table.txt (what is printed) and log.txt (what the programs
# said). The exit status is 0 if every piece that could be run succeeded.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

pieces=(kernels sanitizer reference ceilings table batch-invariant server)
declare -A limit_s=([kernels]=90 [sanitizer]=75 [reference]=60 [ceilings]=15 [table]=130 [batch-invariant]=45 [server]=60)

bin= out= only= stand_in= inside=
while [ $# -gt 0 ]; do
    case "$1" in
        --bin) bin=$2; shift ;;
        --out) out=$2; shift ;;
        --only) only=$2; shift ;;
        --stand-in) stand_in=1 ;;
        # One piece in a process of its own, so that a limit ends it and all that it started.
        --inside) inside=$2; shift ;;
        *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
bin=${bin:-$root/target/gpu-check${stand_in:+-stand-in}}
out=${out:-$root/target/gpu-check-results}
# The models of the tables, most important first.
models=(llama-3.1-8b llama-3.2-1b qwen3-4b)
[ -n "$stand_in" ] && models=(smoke)
# Exit status of a piece that cannot be run here.
SKIPPED=77

emit() { printf '%s\n' "$1" >>"$out/results.jsonl"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f", to - from }'; }
skip() { echo "skipped: $1"; exit $SKIPPED; }

# Names of all tests, as PROGRAM::TEST.
tests() {
    for program in "$bin"/tests/*; do
        "$program" --list --format terse 2>>"$out/log.txt" | sed -n "s/: test\$//p" | sed "s/^/$(basename "$program")::/"
    done
}

# Runs the test $1 in a process of its own, behind the words of $3..., for at most $2 seconds. Prints its result.
run_test() {
    local name=$1 limit=$2 log result began status
    shift 2
    log=$(mktemp) began=$(now)
    (cd "$root/cuda" && timeout --foreground --kill-after=2 "$limit" "$@" "$bin/tests/${name%%::*}" --exact "${name#*::}" \
        --test-threads 1 --nocapture) >"$log" 2>&1
    status=$?
    result=failed
    if [ $status = 0 ]; then result=ok; elif [ $status -ge 124 ] && [ $status -le 137 ]; then result="not finished"; fi
    grep -q "this is about the stand-in, and QUIRE_TEST_DEVICE=real" "$log" && result="left out"
    { echo "--- $name: $result ($*)"; tail -n 60 "$log"; } >>"$out/log.txt"
    rm "$log"
    emit "{\"piece\": \"$piece\", \"test\": \"$name\", \"with\": \"$*\", \"result\": \"$result\", \"seconds\": $(since "$began")}"
    echo "$result $name $*"
}
export -f run_test emit now since

# Counts lines "RESULT NAME" and fails if any test failed. What takes too long is told, and is no failure.
tell_tests() {
    awk '{ kind = $1 == "left" || $1 == "not" ? $1 " " $2 : $1; count[kind]++ }
         kind == "failed" || kind == "not finished" { print }
         END { printf "%d right, %d failed, %d not finished, %d about the stand-in\n", count["ok"],
                   count["failed"], count["not finished"], count["left out"]
               exit count["failed"] > 0 || count["ok"] == 0 }'
}

piece_kernels() {
    # Over the stand-ins the tests themselves are part of every change's checks; here it is their way to a GPU.
    local filter=. jobs=4
    [ -n "$stand_in" ] && filter='^gemm::(products|choice::a_second)' jobs=1
    tests | grep -E "$filter" | xargs -P "$jobs" -I{} bash -c 'run_test "$1" 60' - {} | tell_tests
}

# Tests whose device work is small: the sanitizer makes each access some ten times slower.
memcheck=(decode_attention::a_recorded_launch_serves_rows_of_other_lengths
    decode_attention::layers_of_different_windows_share_a_step
    prefill_attention::recorded_decode_steps_can_be_repeated
    sampling::a_slot_forgets_the_request_before
    operations::norms_and_activation_are_the_cpus
    operations::embedding_and_gather_are_the_cpus
    operations::rotation_and_attention_of_tuned_kernels_are_the_cpus
    small_kernels::blocks_are_copied_whole_and_others_left_alone)
racecheck=(decode_attention::a_recorded_launch_serves_rows_of_other_lengths
    prefill_attention::recorded_decode_steps_can_be_repeated
    sampling::a_slot_forgets_the_request_before)

piece_sanitizer() {
    local all missing sanitizer
    all=$(tests)
    missing=$(printf '%s\n' "${memcheck[@]}" "${racecheck[@]}" | grep -vxF "$all")
    [ -z "$missing" ] || { echo "no such tests: $missing"; return 1; }
    sanitizer=$(PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer command -v compute-sanitizer) ||
        skip "compute-sanitizer is not here"
    {
        printf '%s memcheck\n' "${memcheck[@]}"
        printf '%s racecheck\n' "${racecheck[@]}"
    } | xargs -P 3 -L 1 bash -c \
        'run_test "$2" 60 "$1" --tool "$3" --error-exitcode 9 --print-limit 5' - "$sanitizer" | tell_tests
}

piece_reference() {
    python3 -c 'import torch, transformers' 2>>"$out/log.txt" || skip "Python has no torch and transformers"
    local words=()
    [ -n "$stand_in" ] && words=(--small)
    python3 "$here/reference.py" --quire "$bin/quire" --tokenizer "$root/assets/pebble/model" \
        --results "$out/results.jsonl" "${words[@]}" 2>>"$out/log.txt"
}

# Runs the bench program with $2... for the models $1, and keeps its lines even if it does not come to the end.
bench() {
    local model folders=()
    for model in $1; do folders+=("$here/configs/$model"); done
    lines=$(mktemp)
    "$bin/gpu_bench" --out "$lines" --cache "$cache" ${stand_in:+--smoke} "${@:2}" "${folders[@]}" 2>&1 &
    bench=$!
    trap 'kill $bench 2>/dev/null; cat "$lines" >>"$out/results.jsonl"; rm -f "$lines"' EXIT
    wait $bench
}

piece_ceilings() { bench "" --only ceilings; }
piece_table() { bench "${models[*]}" --only kernels,steps; }
piece_batch-invariant() { bench "${models[0]}" --only steps --batch-invariant; }

# Starts the server on a made-up model and tells how long until it answers.
start_server() {
    local began reply
    began=$(now)
    "$bin/quire" serve "$here/configs/${models[0]}" --load-format dummy --tokenizer "$root/assets/pebble/model" \
        --device cuda --dtype bfloat16 --host 127.0.0.1 --port "$port" --no-grpc "${serve_words[@]}" \
        2>>"$out/log.txt" &
    server=$!
    while kill -0 $server 2>/dev/null; do
        reply=$( { exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /health HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3; } \
            2>/dev/null)
        case "$reply" in
            *" 200 "*)
                echo "$1 start: $(since "$began") s until it answers"
                emit "{\"piece\": \"server\", \"what\": \"$1 start\", \"model\": \"${models[0]}\", \"seconds\": $(since "$began")}"
                return 0 ;;
        esac
        sleep 0.05
    done
    echo "the server did not start; see log.txt"
    return 1
}

piece_server() {
    local prompts=320 len=1000
    serve_words=(--max-model-len 4096)
    if [ -n "$stand_in" ]; then
        prompts=3 len=8
        serve_words=(--max-model-len 128 --max-num-batched-tokens 32 --max-num-seqs 4)
    fi
    port=$((20000 + RANDOM % 10000))
    trap 'kill $server 2>/dev/null' EXIT
    # A cache of its own, so that the first start is one.
    export XDG_CACHE_HOME=$cache/server
    rm -rf "$XDG_CACHE_HOME"
    start_server first || return 1
    kill $server && wait $server
    start_server second || return 1
    "$bin/quire" bench serve --port "$port" --dataset-name random --num-prompts "$prompts" --random-input-len "$len" \
        --random-output-len "$len" --random-range-ratio 0.2 --ignore-eos --disable-tqdm --save-result \
        --result-dir "$cache" --result-filename serve.json 2>>"$out/log.txt" || return 1
    emit "{\"piece\": \"server\", \"what\": \"load\", \"model\": \"${models[0]}\", \"input_len\": $len, \"output_len\": $len, \"result\": $(tr -d '\n' <"$cache/serve.json")}"
}

# Folders with NVIDIA's libraries that the loader would not find: those of Python's wheels, and of a toolkit.
library_path() {
    python3 -c '
import glob, os, site, sys
for folder in [*site.getsitepackages(), site.getusersitepackages(), *sys.path]:
    for found in glob.glob(os.path.join(folder, "nvidia", "*", "lib")):
        print(found)' 2>/dev/null | sort -u
    printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib
}

if [ -n "$inside" ]; then
    piece=$inside
    export piece out bin root
    "piece_$inside"
    exit
fi

[ -x "$bin/gpu_bench" ] || { echo "no programs in $bin; make them with cuda/check/build.sh" >&2; exit 2; }
wanted=(${only:+${only//,/ }})
for piece in "${wanted[@]}"; do
    [ -n "${limit_s[$piece]-}" ] || { echo "$piece is not among ${pieces[*]}" >&2; exit 2; }
done
mkdir -p "$out"
: >"$out/results.jsonl"
: >"$out/log.txt"
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export cache QUIRE_TEST_DEVICE=real CARGO_MANIFEST_DIR=$root/cuda
bin=$(cd "$bin" && pwd)
out=$(cd "$out" && pwd)
if [ -n "$stand_in" ]; then
    export LD_LIBRARY_PATH=$bin/stand-in QUIRE_EMULATOR_MEMORY_BYTES=$((4 << 30))
else
    for folder in $(library_path); do
        compgen -G "$folder/libcublasLt.so.1*" "$folder/libnvrtc.so.1*" >/dev/null &&
            LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
    done
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}
fi

find_library() {
    local folder
    for folder in ${LD_LIBRARY_PATH//:/ }; do
        compgen -G "$folder/$1.so.*" | head -n 1 && return
    done
    ldconfig -p 2>/dev/null | awk -v name="$1.so" 'index($1, name) == 1 { print $NF; exit }'
}

gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null | head -n 1)
{
    echo "build $(cat "$bin/build.json")"
    echo "GPU, driver, memory, clock, power: ${gpu:-unknown (no nvidia-smi)}"
    echo "cuBLASLt: $(find_library libcublasLt)   NVRTC: $(find_library libnvrtc)"
} | tee "$out/table.txt"
emit "{\"piece\": \"machine\", \"build\": $(cat "$bin/build.json"), \"gpu\": \"$gpu\", \"cublaslt\": \"$(find_library libcublasLt)\", \"nvrtc\": \"$(find_library libnvrtc)\"}"

failed=0
for piece in "${pieces[@]}"; do
    [ ${#wanted[@]} = 0 ] || [[ " ${wanted[*]} " == *" $piece "* ]] || continue
    echo | tee -a "$out/table.txt"
    echo "=== $piece" | tee -a "$out/table.txt" "$out/log.txt"
    began=$(now)
    timeout --kill-after=5 "${limit_s[$piece]}" bash "$0" --inside "$piece" --bin "$bin" --out "$out" \
        ${stand_in:+--stand-in} 2> >(tee -a "$out/log.txt" >&2) | tee -a "$out/table.txt"
    case ${PIPESTATUS[0]} in
        0) result=ok ;;
        "$SKIPPED") result=skipped ;;
        124 | 137) result="stopped at its limit of ${limit_s[$piece]} s"; failed=1 ;;
        *) result=failed; failed=1 ;;
    esac
    echo "=== $piece: $result after $(since "$began") s" | tee -a "$out/table.txt"
    emit "{\"piece\": \"$piece\", \"result\": \"$result\", \"seconds\": $(since "$began")}"
done
# A figure that nobody can read is none.
if ! python3 -c 'import json, sys; [json.loads(line) for line in open(sys.argv[1])]' "$out/results.jsonl"; then
    echo "a line of results.jsonl is not JSON" >&2
    failed=1
fi
exit $failed
