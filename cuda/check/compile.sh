#!/usr/bin/env bash
# Compiles every kernel, by nvcc and by NVRTC, and compares what the compiler made of each with what it may take:
# cuda/check/budget.txt. A kernel that has lost its registers to a careless edit is as correct as before, and
# nothing else here would notice. Needs no GPU; needs python3 and, once, the Python package registry for the
# compilers, which go into .cuda/.
#
#     cuda/check/compile.sh             checks
#     cuda/check/compile.sh --record    writes the budget anew, for a change that is meant
set -euo pipefail
cd "$(dirname "$0")/../.."

archs=(sm_80 sm_90a sm_100)
budget=cuda/check/budget.txt
toolkit=.cuda/nvidia/cu13
# Figures are those of one compiler.
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88)

case "${1-}" in
    "" | --record) mode=${1-} ;;
    *) echo "usage: $0 [--record]" >&2 && exit 2 ;;
esac

if [ ! -d .cuda/nvidia_cuda_nvcc-13.0.88.dist-info ] || [ ! -d .cuda/nvidia_cuda_nvrtc-13.0.88.dist-info ]; then
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
        --no-deps --upgrade --target .cuda "${wheels[@]}"
fi

# The crate's own build script, with no cargo around it: the very images that a release has in it. What it makes is
# kept, so that the next time only what has changed is compiled.
made=target/kernels
mkdir -p "$made"
rustc --edition 2024 cuda/build.rs -o "$made/build"
CARGO_MANIFEST_DIR="$PWD/cuda" OUT_DIR="$PWD/$made" NUM_JOBS=$(nproc) NVCC="$PWD/$toolkit/bin/nvcc" QUIRE_CUDA_ARCHS= \
    QUIRE_CUDA_AOT=require "$made/build" >/dev/null

# One line a kernel: its name, registers for each architecture, then the most of them all: bytes of static shared
# memory and bytes of local memory (stack or spills), and where it has local memory.
for file in cuda/kernels/*.cu; do cat "$made/$(basename "$file" .cu).report"; done | awk -v archs="${archs[*]}" '
    function most(table, bytes) {
        if (bytes > table[kernel]) table[kernel] = bytes
        return bytes
    }
    function before(word) { return match($0, "[0-9]+ " word) ? substr($0, RSTART) + 0 : 0 }
    BEGIN { count = split(archs, arch_of) }
    /Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2]; arch = quoted[4] }
    / bytes stack frame/ {
        spilled = most(local, before("bytes spill stores")) + most(local, before("bytes spill loads"))
        if (most(local, before("bytes stack frame")) + spilled) where[kernel] = where[kernel] "," arch
    }
    / Used [0-9]+ registers/ {
        registers[kernel, arch] = before("registers")
        most(shared, before("bytes smem"))
        kernels[kernel]
    }
    END {
        for (kernel in kernels) {
            printf "%s", kernel
            for (i = 1; i <= count; i++) printf " %d", registers[kernel, arch_of[i]]
            printf " %d %d %s\n", shared[kernel], local[kernel], substr(where[kernel], 2)
        }
    }' | sort >"$made/measured"

if [ "$mode" = --record ]; then
    {
        cat <<'END'
# What the compiler may make of each kernel; cuda/check/compile.sh compares, and writes this file with --record.
#
# Registers a thread are rounded up to a multiple of eight: they are given out in eights, so that growth within
# costs nothing. Local memory is stack and spills, in bytes; --record never raises it, so that a kernel which
# needs some is let in by hand, with a reason in the change.
#
END
        awk 'BEGIN { line = "%-44s %6s %6s %6s %8s %8s\n"
                     printf line, "# kernel", "sm_80", "sm_90a", "sm_100", "shared", "local" }
            !measured { if ($1 !~ /^#/) allowed[$1] = $6; next }
            { for (i = 2; i <= 4; i++) $i = $i > 248 ? 255 : int(($i + 7) / 8) * 8
              printf line, $1, $2, $3, $4, $5, ($6 < allowed[$1] ? $6 : allowed[$1] + 0) }
        ' <(cat "$budget" 2>/dev/null) measured=1 "$made/measured"
    } >"$made/budget"
    cp "$made/budget" "$budget"
fi

awk -v budget="$budget" '
    function check(column, what) {
        if ($column <= may[$1, column] + 0) return
        printf "%s: %d %s, and its budget is %d\n", $1, $column, what, may[$1, column]
        wrong = 1
    }
    $1 ~ /^#/ { next }
    !measured { listed[$1]; for (i = 2; i <= NF; i++) may[$1, i] = $i; next }
    !($1 in listed) { printf "%s: not in %s\n", $1, budget; wrong = 1; next }
    {
        there[$1]
        check(2, "registers for sm_80"); check(3, "registers for sm_90a"); check(4, "registers for sm_100")
        check(5, "bytes of static shared memory")
        check(6, "bytes of local memory (stack or spills), for " $7)
    }
    END {
        for (kernel in listed) if (!(kernel in there)) {
            printf "%s: in %s, but no file defines it\n", kernel, budget
            wrong = 1
        }
        if (wrong) print "If this is meant: cuda/check/compile.sh --record (local memory: by hand, in " budget ")"
        exit wrong
    }' <(cat "$budget" 2>/dev/null) measured=1 "$made/measured" >&2
echo "nvcc: $(wc -l <"$made/measured") kernels within their budget for ${archs[*]}"

# The way of a machine without nvcc: NVRTC knows fewer built-in functions, on whatever architecture.
LD_LIBRARY_PATH="$PWD/$toolkit/lib" cargo run --release --locked --quiet -- \
    compile-kernels --arch sm_90a --out "$made" >/dev/null
echo "NVRTC: the same files compile"
