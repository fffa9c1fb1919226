// What the lanes of a warp do together: shuffles, votes, matrix loads and products; and the asynchronous
// copies of a thread.

#include "warp.h"

#include <algorithm>
#include <stdlib.h>

#include "accesses.h"
#include "host.h"

namespace emulator {
namespace {

struct Shuffle {
    uint64_t value;
    uint32_t source;
};

void run_shuffle(Thread* lanes, uint32_t mask, uint32_t existing) {
    uint64_t values[32];
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        unsigned l = unsigned(__builtin_ctz(rest));
        values[l] = ((Shuffle*)lanes[l].operand)->value;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        unsigned l = unsigned(__builtin_ctz(rest));
        Shuffle* mine = (Shuffle*)lanes[l].operand;
        uint32_t source = mine->source;
        if (mask >> source & 1) mine->value = values[source];
        else if (existing >> source & 1)
            fail_at(lanes[l].site, "lane %u reads from lane %u, which is not in the mask %08x", l, source,
                    mask);
        else mine->value = ~uint64_t(0); // undefined on the GPU, too
    }
}

struct Ballot {
    bool predicate;
    uint32_t votes;
};

void run_ballot(Thread* lanes, uint32_t mask, uint32_t) {
    uint32_t votes = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        unsigned l = unsigned(__builtin_ctz(rest));
        votes |= uint32_t(((Ballot*)lanes[l].operand)->predicate) << l;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1)
        ((Ballot*)lanes[__builtin_ctz(rest)].operand)->votes = votes;
}

void run_sync(Thread* lanes, uint32_t, uint32_t) { accesses_order_warp(lanes->warp->number); }

struct MatrixLoad {
    uint32_t* r;
    const uint16_t* row;
};

template <bool transposed> void run_load_matrices(Thread* lanes, uint32_t, uint32_t) {
    for (unsigned l = 0; l < 32; l++) {
        MatrixLoad* mine = (MatrixLoad*)lanes[l].operand;
        for (unsigned matrix = 0; matrix < 4; matrix++) {
            uint32_t element[2];
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = l / 4, column = l % 4 * 2 + i;
                if (transposed) std::swap(row, column);
                element[i] = ((MatrixLoad*)lanes[matrix * 8 + row].operand)->row[column];
            }
            mine->r[matrix] = element[0] | element[1] << 16;
        }
    }
}

struct Product {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

template <class T> float element(uint32_t pair, unsigned i) { return to_float(T{uint16_t(pair >> 16 * i)}); }

// PTX's fragments: lane l holds of A the rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, then the
// same 8 columns on; of B the column l / 4 and those as rows; of D the rows of A's and columns 2 (l % 4) and
// the next.
template <class T> void run_multiply(Thread* lanes, uint32_t, uint32_t) {
    float a[16][16], b[16][8], d[16][8];
    for (unsigned l = 0; l < 32; l++) {
        const Product* mine = (const Product*)lanes[l].operand;
        unsigned row = l / 4, column = l % 4 * 2;
        for (unsigned i = 0; i < 2; i++) {
            a[row][column + i] = element<T>(mine->a[0], i);
            a[row + 8][column + i] = element<T>(mine->a[1], i);
            a[row][column + 8 + i] = element<T>(mine->a[2], i);
            a[row + 8][column + 8 + i] = element<T>(mine->a[3], i);
            b[column + i][row] = element<T>(mine->b[0], i);
            b[column + 8 + i][row] = element<T>(mine->b[1], i);
            d[row][column + i] = mine->d[i];
            d[row + 8][column + i] = mine->d[2 + i];
        }
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (unsigned l = 0; l < 32; l++) {
        Product* mine = (Product*)lanes[l].operand;
        unsigned row = l / 4, column = l % 4 * 2;
        for (unsigned i = 0; i < 2; i++) {
            mine->d[i] = d[row][column + i];
            mine->d[2 + i] = d[row + 8][column + i];
        }
    }
}

void full_warp(Site site, const char* operation) {
    if (current->warp->existing != ~0u) fail_at(site, "%s needs all 32 lanes of the warp", operation);
}

void check_shared(const void* address, Site site, const char* operation) {
    if ((uintptr_t)address % 16)
        fail_at(site, "%s: the address %p in shared memory is no multiple of 16", operation, address);
    const unsigned char* at = (const unsigned char*)address;
    if (at < shared || at + 16 > shared + shared_bytes)
        fail_at(site, "%s: byte %td is not in the %zu bytes of shared memory", operation, at - shared,
                shared_bytes);
}

} // namespace

void sync_warp(uint32_t mask, Site site) { exchange(mask, run_sync, nullptr, site); }

uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t source, Site site) {
    Shuffle mine = {value, source & 31};
    exchange(mask, run_shuffle, &mine, site);
    return mine.value;
}

uint32_t ballot(uint32_t mask, bool predicate, Site site) {
    Ballot mine = {predicate, 0};
    exchange(mask, run_ballot, &mine, site);
    return mine.votes;
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
    full_warp(site, "ldmatrix");
    check_shared(row, site, "ldmatrix");
    accesses_touch(row, 16, false, __builtin_return_address(0));
    MatrixLoad mine = {r, (const uint16_t*)row};
    exchange(~0u, transposed ? run_load_matrices<true> : run_load_matrices<false>, &mine, site);
}

void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
    full_warp(site, "mma");
    Product mine = {d, a, {b0, b1}};
    exchange(~0u, run_multiply<bf16>, &mine, site);
}

void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
    full_warp(site, "mma");
    Product mine = {d, a, {b0, b1}};
    exchange(~0u, run_multiply<f16>, &mine, site);
}

// The bytes arrive only at the wait, but what was there is gone at once: on the GPU either may happen any
// time.
void async_copy16(void* to, const void* global, bool valid, Site site) {
    check_shared(to, site, "cp.async");
    if ((uintptr_t)global % 16) fail_at(site, "cp.async: the address %p is no multiple of 16", global);
    current->site = site;
    if (valid) (void)*(const volatile uint64_t*)global; // a fault here is reported at this place
    if (valid) accesses_touch(global, 16, false, __builtin_return_address(0));
    accesses_touch(to, 16, true, __builtin_return_address(0));
    memset(to, 0xff, 16);
    current->copies.push_back({to, valid ? global : nullptr});
}

void async_commit() { current->groups.push_back(current->copies.size()); }

void async_wait(int pending, Site site) {
    Thread* self = current;
    self->site = site;
    if (self->groups.size() <= size_t(pending)) return;
    size_t waited = self->groups.size() - size_t(pending), landing = self->groups[waited - 1];
    for (size_t left = landing; left; left--) {
        size_t at = random_below(left);
        AsyncCopy copy = self->copies[at];
        std::swap(self->copies[at], self->copies[left - 1]);
        accesses_touch(copy.shared, 16, true, __builtin_return_address(0));
        if (copy.global) memcpy(copy.shared, copy.global, 16);
        else memset(copy.shared, 0, 16);
    }
    self->copies.erase(self->copies.begin(), self->copies.begin() + ptrdiff_t(landing));
    self->groups.erase(self->groups.begin(), self->groups.begin() + ptrdiff_t(waited));
    for (size_t& end : self->groups) end -= landing;
}

} // namespace emulator
